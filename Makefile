# `make demo` and `make test` need Python 3.11 or newer and make; everything else they install into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests mostly wait for processes they started, so more of them than CPUs run at once; on two, three took least.
WORKERS ?= 3

# The program is started hundreds of times here: its bytecode is worth keeping.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check fix docker e2e soak picture bench clean

help: ## what can be made
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml
	@echo "installing into $(VENV), once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(READY) ## the main job on the simulated engine: launch, talk, swap, status, stop
	@PATH="$(CURDIR)/$(BIN):$$PATH" docs/demo.sh

test: $(READY) ## all tests that need neither Docker nor a GPU nor a real vLLM
	$(BIN)/pytest --numprocesses $(WORKERS)

check: $(READY) ## lint, types, import contract, generated files up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m agent_manager.catalog.schema --check models.schema.json
	$(BIN)/agent-manager --catalog models.yaml compose --check

fix: $(READY) ## what the linters can mend, and the generated files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python -m agent_manager.catalog.schema > models.schema.json
	$(BIN)/agent-manager --catalog models.yaml compose

docker: $(READY) ## tests on a real Docker; as root, installs it from Debian's packages and starts it where needed
	$(BIN)/python -m tests.docker.debian
	$(BIN)/pytest -m docker

e2e: $(READY) ## real vLLM on the CPU, in processes and in Docker, the built wheel; installs vLLM under ~/.cache once
	$(BIN)/python tests/e2e/prepare.py
	$(BIN)/python -m tests.docker.debian
	$(BIN)/pytest -m e2e --timeout=900 tests/e2e

soak: $(READY) ## the gateway under 500 clients for ten minutes
	$(BIN)/pytest -m soak -s tests/faults/test_gateway_soak.py

picture: $(READY) ## the README's picture, from a real terminal on the simulated engine
	$(BIN)/python -m docs.picture

bench: $(READY) ## ratios beside a named yardstick; the table goes to benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

clean: ## forget the environment and everything generated
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
