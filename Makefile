# All targets use .venv, made on first need. Use another interpreter with: make install PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Small batches on small networks: one thread per process is fastest, and it keeps results reproducible.
export OMP_NUM_THREADS ?= 1

# Of 30,000 installed files few are imported; these are compiled then, and once.
unexport PYTHONDONTWRITEBYTECODE

# Two processes, each with whole files, in their order: tests of one file share what they have trained.
TWO := -n 2 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install test test-fast demo bench docs lint wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-9s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv when missing, and install the package with everything for development

# Runs again only when pyproject.toml changes.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $@

test: install ## run all tests on two cores
	$(BIN)/python -m pytest -q $(TWO)

test-fast: install ## run the tests that are not slow, in minutes
	$(BIN)/python -m pytest -q $(TWO) -m "not slow and not browser and not gpu"

demo: install ## train one agent in a minute, and open a page with its film
	$(BIN)/dxmi-rl demo

bench: install ## compare five agents on three tasks, in minutes
	$(BIN)/python benchmarks/compare/compare.py --preset quick --name quick

docs: install ## fill in what pages take from the code, and build the site into site/
	$(BIN)/python tools/make_pages.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs site

lint: install ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

wheel: ## build the wheel into dist/
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dxmi_rl tests benchmarks tools docs -name __pycache__ -type d -prune -exec rm -rf {} +
