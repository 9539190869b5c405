# lowbit-scaling: every target makes the .venv it needs.  `make` alone explains.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A user with a GPU installs their own torch into .venv first; pip then keeps it.
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo smoke test test-all lint format bench-quant clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "making $(VENV) (about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt $(TORCH) setuptools
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "adding the development tools ..."
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## Make .venv and install the commands into it

demo: $(VENV)/installed ## Train, fit and report the demo study (about 6 minutes the first time)
	@$(BIN)/lowbit-train -m study=demo
	@$(BIN)/lowbit-fit study=demo
	@$(BIN)/lowbit-report study=demo

smoke: $(VENV)/installed ## The same path in its smallest form, under a minute
	@$(BIN)/lowbit-train -m study=smoke
	@$(BIN)/lowbit-fit study=smoke
	@$(BIN)/lowbit-report study=smoke

test: $(VENV)/installed-dev ## Run the tests, but for the slow ones
	@$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/installed-dev ## Run all tests
	@$(BIN)/python -m pytest

lint: $(VENV)/installed-dev ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/installed-dev ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench-quant: $(VENV)/installed-dev ## Time the quantizers against a copy and the plain PyTorch way
	@$(BIN)/python benchmarks/bench_quant.py

clean: ## Remove .venv and caches; runs and reports stay
	@rm -rf $(VENV) build *.egg-info experiments/quant/kernels/*.so .pytest_cache .mypy_cache .ruff_cache
