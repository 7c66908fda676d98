# A fresh machine needs Python 3.11+ and make; everything else is installed into .venv, pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
RUN ?= runs/demo

.PHONY: help install demo test lint format bench docs docs-serve clean

help:
	@echo "make demo     train, search, plot and emit on procedurally drawn people (under 10 minutes on 2 cores)"
	@echo "make test     lint, type check and the whole test suite"
	@echo "make lint     ruff and mypy --strict only"
	@echo "make docs     the documentation site, into site/ (open site/index.html)"
	@echo "make bench    the benchmarks of experiments/benchmarks"

install: $(DEV_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "litepose-nas needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $(STAMP)

# What tests, linters, the site of the documentation, Ray and the other runtimes need besides; the demo does without.
$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,litert,ncnn,openvino,ray]'
	@touch $(DEV_STAMP)

demo: $(STAMP)
	$(BIN)/nas demo --output $(RUN)

test: $(DEV_STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)
	for script in experiments/benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

# The site asks no other host for anything. The variable silences a notice about MkDocs' own future.
docs: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

docs-serve: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

clean:
	rm -rf site $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
