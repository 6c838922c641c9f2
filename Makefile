# Every target does its own set-up in .venv. `make quickstart` installs the core, the other targets add what they need.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test lint types unit notebooks test-slow test-lowest test-newest format docs wheel wheel-test

install: $(VENV)/.dev

$(VENV)/.core: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latte_pl needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[docs]'
	@touch $@

quickstart: $(VENV)/.core
	$(BIN)/latte predict --ckpt_path shapes --num_samples 16 --output runs/samples
	$(BIN)/latte-ablate run quickstart --jobs 2
	$(BIN)/latte-ablate report quickstart
	@echo "next    open the page above and the samples of the shipped weights, runs/samples/contact_sheet.png"
	@echo "        source $(BIN)/activate; latte-ablate list names the studies of the paper's questions, latte-ablate run STUDY --jobs 2"
	@echo "        trains one; latte fit -c data/folder.yaml -c model/tiny.yaml -c experiment/laptop.yaml --data.root VIDEOS trains on yours"

test: lint types unit notebooks

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

notebooks: install
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=1800 notebooks

test-slow: install
	$(BIN)/python -m pytest -m slow

# the tests with the oldest and with the newest releases that setup.py allows, each in an environment of its own
test-lowest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	$(PYTHON) .ci/bounds.py $* > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet --only-binary :all: $(PIP_ARGS) -c .venv-$*/constraints.txt -e '.[dev]'
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: install
	rm -rf build  # files of earlier builds would be part of the wheel
	$(BIN)/pip wheel . --quiet --no-deps --wheel-dir dist

wheel-test: install
	$(BIN)/python -m pytest -m slow tests/test_wheel.py
