# setup, demo, test, lint, clean. Every target makes .venv first if it is missing.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/demo

.PHONY: setup demo test lint format clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

demo: setup
	$(BIN)/python -m train.main --config configs/demo.py --workdir $(WORKDIR)
	$(BIN)/python -m eval.main --config configs/demo.py --workdir $(WORKDIR)

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
