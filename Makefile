# Everything is made in .venv here; nothing is installed elsewhere but, where it is missing, Debian's python3-venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint faults bench docs clean

help:
	@echo "make install   what the scripts need, in .venv"
	@echo "make demo      the main job for real, in demo/, under 5 minutes"
	@echo "make test      lint, types and the quick tests"
	@echo "make faults    the long fault campaign"
	@echo "make bench     the benchmarks"
	@echo "make docs      docs/cli.md and parts of the guide, from the code"
	@echo "make clean     remove .venv and caches, never data"

install: $(VENV)/.train

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; run: make install PYTHON=python3.11 (or newer)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh .ci/debian-packages python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[train]'
	@rm -rf build training_guardrails.egg-info
	@# The scripts must start fast even where the environment forbids writing bytecode.
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q guardrails
	@touch $@

$(VENV)/.test: $(VENV)/.train
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[train,test]'
	@rm -rf build training_guardrails.egg-info
	@touch $@

demo: install
	$(BIN)/python -m tests.demo demo

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not faults"

faults: $(VENV)/.test
	$(BIN)/python -m pytest -m faults

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

docs: install
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
