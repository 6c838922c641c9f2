# Every target does its own set-up; `make install` makes .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test test-slow lint

install: $(STAMP)

$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latte_pl needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $(STAMP)

# bf16 only where the processor multiplies it; elsewhere it is slower than float32
SCALE := import torch; print("proxy" if torch.cpu.get_capabilities().get("avx512_bf16") else "float32")

quickstart: install
	$(eval SCALE := $(shell $(BIN)/python -c '$(SCALE)'))
	$(BIN)/latte-ablate run quickstart --scale $(SCALE) --jobs 2
	$(BIN)/latte-ablate report quickstart --scale $(SCALE)

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest --nbmake notebooks

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
