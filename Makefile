# setup, demo, test, lint, clean. Every target makes .venv first if it is missing.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/demo
SHORT := --config.data.name=tiny --config.train.steps=60 --config.static_train.steps=60 --config.validation.every=30

.PHONY: setup demo demo-short test lint format clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

demo: setup
	$(BIN)/python -m train.main --config configs/demo.py --workdir $(WORKDIR)
	$(BIN)/python -m eval.main --config configs/demo.py --workdir $(WORKDIR)

# the demo's path in a minute or two, on the toybox's tiny config: that it runs, not what it shows
demo-short: setup
	$(BIN)/python -m train.main --config configs/demo.py --workdir runs/demo-short $(SHORT)
	$(BIN)/python -m eval.main --config configs/demo.py --workdir runs/demo-short $(SHORT)

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
