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
BF16 := import torch; print("bf16-mixed" if torch.cpu.get_capabilities().get("avx512_bf16") else "32-true")

quickstart: install
	$(eval CPU := --trainer.accelerator cpu --trainer.devices 1 --trainer.precision $(shell $(BIN)/python -c '$(BF16)'))
	@echo "1/3  samples of the shipped weights"
	$(BIN)/latte predict $(CPU) --ckpt_path shapes --num_samples 64 --batch_size 32 --output runs/quickstart/shipped
	@echo "2/3  the same model from scratch, three minutes"
	$(BIN)/latte fit $(CPU) -c data/shapes.yaml -c model/tiny.yaml -c experiment/quickstart.yaml
	@echo "3/3  its samples"
	$(BIN)/latte predict $(CPU) --ckpt_path runs/quickstart --num_samples 64 --batch_size 32
	@echo
	@echo "shipped weights   runs/quickstart/shipped/contact_sheet.gif"
	@echo "your own          runs/quickstart/predict/contact_sheet.gif"
	@echo "curves            $(BIN)/tensorboard --logdir runs"

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
