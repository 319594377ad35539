# make install | quickstart | examples | test | test-all | fuzz | mutants | lint | format | docs | clean

PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := .venv/.installed
# make install EXTRAS= installs only the core; make quickstart ARGS=seed=2 overrides keys.
EXTRAS ?= [dev]
ARGS ?=
# Two processes of one thread each; on a small machine more threads would only wait for each other.
WORKERS ?= $(shell [ "$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)" -gt 1 ] && echo 2 || echo 0)
# A file of tests runs in one worker, which makes its fixtures and imports its libraries once. Keep bytecode, even if the
# environment forbids it: the tests start dozens of processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile \
	--no-loadscope-reorder

.PHONY: install quickstart examples test test-all fuzz mutants lint format docs clean

install: $(STAMP)

# The constraints pin torch too, so that pip keeps the installed version.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Quintet needs Python 3.11 or later; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.$(EXTRAS)' --constraint constraints.txt
	touch $@

quickstart: install
	$(BIN)/quintet train examples/quickstart.yaml $(ARGS)

# Small datasets for the files under examples/, made from installed packages.
examples: install
	$(BIN)/python examples/make_data.py

test: install
	$(PYTEST)

test-all: install
	$(PYTEST) -m ""

# New inputs on each call; SECONDS is the total budget of all fuzzers.
SECONDS ?= 600
fuzz: install
	$(PYTEST) tests/fuzz -m fuzz --fuzz-total=$(SECONDS) --fuzz-seed=$$(date +%s)

# Mutation tests: the tests should notice small changes in chosen files.
mutants: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: install
	$(BIN)/python -m quintet.config.reference > docs/reference/run-file.md.new
	mv docs/reference/run-file.md.new docs/reference/run-file.md
	$(BIN)/python -m quintet.config.reference docs/dialects

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
