PYTHON ?= python3
BIN := .venv/bin
# `required`: fail where a real server cannot be had. Otherwise the tests that need it are skipped and say so.
SERVERS ?= optional

.PHONY: setup demo test check format bench servers

setup: .venv/installed

# Hashes and all: nothing is resolved at the time of the installation.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: setup
	$(BIN)/stream-monitor demo

test: setup servers
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# events.py makes the events the others measure with.
bench: setup
	for script in $(filter-out %/events.py,$(wildcard tests/benchmarks/*.py)); do $(BIN)/python "$$script" || exit 1; done

servers: setup
	@.ci/servers || test $(SERVERS) = optional
