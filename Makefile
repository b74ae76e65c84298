# make quickstart | test | test-serving | checks | bench     (each installs into .venv first, once)
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-serving checks bench install clean

quickstart: install
	@$(BIN)/shardline quickstart

test: install
	$(BIN)/python -m pytest --numprocesses 2

# In llama.cpp and vLLM, each in an environment of its own: LLAMA_CPP_PYTHON=... VLLM_PYTHON=...
test-serving: export LLAMA_CPP_PYTHON := $(LLAMA_CPP_PYTHON)
test-serving: export VLLM_PYTHON := $(VLLM_PYTHON)
test-serving: install
	@$(BIN)/python -m tests.serving.engines
	$(BIN)/python -m pytest -m serving tests/serving

checks: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.train_step --check
	$(BIN)/python -m benchmarks.data_build --check
	$(BIN)/python -m benchmarks.filters --check
	$(BIN)/python -m benchmarks.data_sources --check
	$(BIN)/python -m benchmarks.loader --check
	$(BIN)/python -m benchmarks.objectives --check
	$(BIN)/python -m benchmarks.attention --check
	$(BIN)/python -m benchmarks.many_ranks --check
	$(BIN)/python -m benchmarks.phases --quick --check
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.save --check
	$(BIN)/python -m benchmarks.parallel --check
	$(BIN)/python -m benchmarks.memory --check

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shardline needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 ...")'
	@echo "Installing into $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) runs data
