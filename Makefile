# lowbit-scaling: every target makes the .venv it needs.  `make` alone explains.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A user with a GPU installs their own torch into .venv first; one of the same release is then kept.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# uv installs in seconds what takes pip minutes.  It reads none of pip's settings, so it is told
# where pip looks; where uv cannot be had, or does not find something there, pip installs it.
PLACES = $(BIN)/python -m pip config list \
	| sed -nE "s/^[^=]*\.(index-url|extra-index-url|find-links)='(.*)'$$/\1 \2/p" \
	| while read -r option places; do for place in $$places; do echo "--$$option $$place"; done; done
define install
	@test -x $(BIN)/uv || $(PIP) install --constraint constraints.txt uv || true
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --index-strategy unsafe-best-match \
		$$($(PLACES)) --constraint constraints.txt $(1) \
		|| $(PIP) install --constraint constraints.txt $(1)
endef
CHROMIUM := apt-get install --yes --quiet --no-install-recommends chromium

.DEFAULT_GOAL := help
.PHONY: help install demo smoke browser test test-slow test-all lint format bench-quant bench-train bench-fit bench-sweep clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "making $(VENV) (about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,'setuptools>=77')
	$(call install,--no-build-isolation --editable .) # torch is unpacked while the kernel compiles
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "adding the development tools ..."
	$(call install,--no-build-isolation --editable '.[dev]')
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

browser: $(VENV)/installed ## Install Chromium, without which the tests of pages are skipped (as root, on Debian)
	@$(BIN)/python -c "from tests.support.browser import CHROMIUM; raise SystemExit(not CHROMIUM)" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& echo "adding Chromium for the tests of pages ..." \
		&& { $(CHROMIUM) || { apt-get update -q && $(CHROMIUM); }; } >/dev/null 2>&1; } \
		|| echo "no Chromium, and no way to add it here: the tests of pages are skipped"

# Two files at a time: many tests wait for processes and servers they started.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/installed-dev ## Run the tests, but for the slow ones (25 minutes on two slow cores)
	@$(BIN)/python -m pytest $(TWO) -m "not slow and not long"

test-slow: $(VENV)/installed-dev ## Run the slow ones: sweeps that are killed, coverage of intervals, Slurm
	@$(BIN)/python -m pytest $(TWO) -m "slow and not long"

test-all: $(VENV)/installed-dev ## Run all tests, the long walks and the tutorial among them (hours)
	@$(BIN)/python -m pytest $(TWO)

lint: $(VENV)/installed-dev ## Check style, types and spelling
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

format: $(VENV)/installed-dev ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# The extra "peers", one by one; they see .venv's packages, torch among them, never the reverse.
PEERS := .venv-peers
$(PEERS)/installed: $(VENV)/installed-dev
	@echo "making $(PEERS) ..."
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	@echo '*' > $(PEERS)/.gitignore
	@echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" \
		> $$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth
	@$(PEERS)/bin/python -m pip --quiet --disable-pip-version-check install setuptools wheel
	@for peer in ninja torchao qtorch pychop transformers fouroversix; do \
		SKIP_CUDA_BUILD=1 $(PEERS)/bin/python -m pip --quiet --disable-pip-version-check install \
			--constraint constraints.txt --no-build-isolation $$peer \
			|| echo "$$peer cannot be installed here: the benchmark leaves it out"; \
	done
	@touch $@

bench-quant: $(PEERS)/installed ## Time the quantizers against a copy, the plain way and other libraries
	@PATH="$(abspath $(PEERS))/bin:$$PATH" $(PEERS)/bin/python benchmarks/bench_quant.py

bench-train: $(VENV)/installed-dev ## Time training by recipe beside the unquantized
	@$(BIN)/python benchmarks/bench_train.py --profile

bench-fit: $(VENV)/installed ## Time fits and bootstraps against the standard procedure (half a minute)
	@$(BIN)/python benchmarks/bench_fit.py

# hydra-ray-launcher sees .venv's packages, Ray and Hydra among them.  Without its own requirements:
# boto3, cloudpickle and what ray[default] adds serve its launcher for AWS.
LAUNCHERS := .venv-launchers
$(LAUNCHERS)/installed: $(VENV)/installed
	@echo "making $(LAUNCHERS) ..."
	@test -x $(LAUNCHERS)/bin/python || $(BIN)/python -m venv $(LAUNCHERS)
	@echo '*' > $(LAUNCHERS)/.gitignore
	@echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" \
		> $$($(LAUNCHERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth
	@$(LAUNCHERS)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps \
		hydra-ray-launcher==1.2.2
	@touch $@

bench-sweep: $(LAUNCHERS)/installed ## Time sweeps against Hydra's other launchers, and planning (6 minutes)
	@$(BIN)/python benchmarks/bench_sweep.py
	@$(BIN)/python benchmarks/bench_sweep.py --plan

clean: ## Remove .venv and caches; runs and reports stay
	@rm -rf $(VENV) $(PEERS) $(LAUNCHERS) build *.egg-info experiments/quant/kernels/*.so .pytest_cache .mypy_cache .ruff_cache
