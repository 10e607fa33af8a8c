# All targets use .venv, made on first need. Use another interpreter with: make install PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Small batches on small networks: one thread per process is fastest, and it keeps results reproducible.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install test bench docs lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv when missing, and install the package with everything for development

# Runs again only when pyproject.toml changes.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

test: install ## run the tests on two cores
	$(BIN)/python -m pytest -q -n 2

bench: install ## run the quick comparison of all agents
	$(BIN)/python benchmarks/compare/compare.py --preset quick --name quick

docs: install ## write the pages of agents, environment and targets, and pictures of these
	$(BIN)/python docs/make_agent_pages.py
	$(BIN)/python docs/make_pages.py

lint: install ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dxmi_rl tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
