# setup, check, test, demo, serve, docs, clean. Every target makes the environment that it needs first, if it is missing.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/demo
SHORT := --config.data.name=tiny --config.train.steps=60 --config.static_train.steps=60 --config.validation.every=30
PIP := -m pip install --quiet

# what hosted notebooks have, and the oldest that is supported: the lower bounds of pyproject.toml
FLOOR := jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 numpy==2.0.2
TESTS ?= tests

.PHONY: setup demo serve demo-short check test test-all test-indexes test-onnx test-service test-cluster test-hosts rules structure campaign mutations audit wheel-test test-floor smoke-floor test-runtime test-newest docs which lint format clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --upgrade pip
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: setup
	$(BIN)/python -m train.main --config configs/demo.py --workdir $(WORKDIR)
	$(BIN)/python -m eval.main --config configs/demo.py --workdir $(WORKDIR)

# the search page on drawn toys, or on pictures of your own: make serve PICTURES=folder; with the demo's adapter, if it
# was trained
PORT ?= 8000
PICTURES ?= runs/pictures
serve: setup
	test -e $(PICTURES) || $(BIN)/python -m qat_jax.serve.demo $(PICTURES)
	$(BIN)/qat-jax serve $(PICTURES) --port $(PORT) \
	  $(if $(and $(filter runs/pictures,$(PICTURES)),$(wildcard $(WORKDIR)/adapter/adapter.json)),--adapter $(WORKDIR))

# the demo's path in a minute or two, on the toybox's tiny config: that it runs, not what it shows
demo-short: setup
	$(BIN)/python -m train.main --config configs/demo.py --workdir runs/demo-short $(SHORT)
	$(BIN)/python -m eval.main --config configs/demo.py --workdir runs/demo-short $(SHORT)

# the inner loop: format, lint, types, and the tests that start no process or browser, train nothing and compile little
QUICK := not process and not browser and not train and not docs and not compile and not long
check: setup lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '$(QUICK)'

# what a contributor must see, in a few minutes
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not browser and not long'

# all that CI sees of the tests: browser, notebooks, campaigns, hosts, and what needs packages that setup leaves out
test-all: setup lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 tests tests/faults/hosts.py
	$(MAKE) test-indexes test-onnx test-service test-cluster

# training on many hosts, as processes of this machine: some minutes
test-hosts: setup
	$(BIN)/python -m pytest -n 2 tests/faults/hosts.py

# the indexes of others, with those that make setup leaves out for their size
test-indexes: setup
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[indexes]'
	$(BIN)/python -m pytest tests/qat_jax/search/index_test.py tests/qat_jax/search/indexes

# requests made of the service's OpenAPI description, right and wrong ones: a minute
test-service: setup
	$(BIN)/python $(PIP) --constraint constraints.txt schemathesis
	$(BIN)/python -m pytest tests/qat_jax/serve/web/description_test.py

# an adapter's programs in ONNX, whose converter is large
test-onnx: setup
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[onnx]'
	$(BIN)/python -m pytest tests/qat_jax/sharing/programs_test.py

# the same stages on a Ray cluster of three nodes on this machine; alone, since it writes a file for the whole machine
test-cluster: setup
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest tests/qat_jax/distributed

# who may import whom, and what is declared: seconds
rules: setup
	$(BIN)/python -m pytest tests/import_test.py tests/packaging_test.py

# how large the code is, and what is too long: seconds
structure: setup
	$(BIN)/python -m tests.structure

# tries to break every stage: kills, full disks, damaged files, malformed inputs; goes on where it was stopped
campaign: setup
	$(BIN)/python -m tests.faults.campaign --write

# plants a fault for each campaign, and shows that it is caught
mutations: setup
	$(BIN)/python -m tests.faults.mutations

# what is installed and under which licence, and what of it is known to be vulnerable: by a folder of advisories in
# OSV's format (ADVISORIES=folder), or by pip-audit where that is installed and has the network
audit: setup
	$(BIN)/python .ci/audit.py $(if $(ADVISORIES),--advisories $(ADVISORIES))

# the wheel, alone in a fresh environment
wheel-test:
	$(PYTHON) .ci/wheel.py

.venv-floor/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-floor
	grep -vE '^(jax|jaxlib|flax|numpy)==' constraints.txt > .venv-floor/constraints.txt
	.venv-floor/bin/python $(PIP) --constraint .venv-floor/constraints.txt --editable '.[all,dev]' $(FLOOR)
	touch $@

test-floor: .venv-floor/installed
	.venv-floor/bin/python -m pytest -n 2 --dist worksteal $(TESTS)

# the notebooks with what a hosted runtime has: RUNTIME=colab, colab-2026.07 or kaggle, a list in colab/runtimes; PYTHON=
# python3.12 or 3.13, as the list says
RUNTIME ?= colab
test-runtime: .venv-$(RUNTIME)/installed
	.venv-$(RUNTIME)/bin/python -m pytest tests/colab

.venv-%/installed: colab/runtimes/%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python $(PIP) --requirement colab/runtimes/$*.txt
	.venv-$*/bin/python $(PIP) --constraint colab/runtimes/$*.txt '.[encoders,train,eval]' ipykernel nbclient nbformat pytest
	touch $@

# the import and the demo's short form at the floor
smoke-floor: .venv-floor/installed
	.venv-floor/bin/python -c 'import qat_jax; print(qat_jax.__version__)'
	.venv-floor/bin/python -m train.main --config configs/demo.py --workdir runs/demo-floor $(SHORT)
	.venv-floor/bin/python -m eval.main --config configs/demo.py --workdir runs/demo-floor $(SHORT)

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) --editable '.[all,dev]'
	touch $@

test-newest: .venv-newest/installed
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal $(TESTS)

.venv/docs: .venv/installed
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

# which part pays with how much training data: make which ROOT=products OUT=runs/which; of the demo:
# make which ROOT=runs/demo/features OUT=runs/which-demo CONFIG=configs/demo.py
CONFIG ?= configs/features.py
SHARES ?= 0.0333 0.1 0.333 1
which: setup
	for share in $(SHARES); do \
	  $(BIN)/python -m eval.compare cut $(ROOT) $(OUT)/set-$$share --share $$share && \
	  $(BIN)/python -m train.main --config $(CONFIG) --config.data.root=$(OUT)/set-$$share --workdir $(OUT)/run-$$share || exit 1; \
	done
	$(BIN)/python -m eval.compare parts $(OUT)/which.md $(SHARES:%=$(OUT)/run-%)

# the site, in site/; warnings are errors
docs: .venv/docs
	$(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-* runs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
