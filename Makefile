# Everything a contributor runs. Each target prepares .venv first, and installs again only after setup.cfg changed.
#
#   make demo    the code census, its orchestrator killed half-way
#   make test    lint, types and all tests (what .ci/run does)
#   make lint    ruff and mypy alone
#   make bench   the benchmarks, each against plain Ray in the same run
#   make chaos   real processes, nodes and clusters killed under a load; nothing may be lost
#   make soak    simulated schedules, for SECONDS=600, from SEED=n on (default: a fresh one)
#   make exhaustive   a simulated death at every step of every reference orchestration, and at all pairs of steps
#   make clean   remove .venv and build/
#
# PYTHON=/path/to/python chooses the interpreter, TESTS="tests/engine -x" what pytest runs, CHAOS="--quick" how much is
# killed (CHAOS=--help tells the rest).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PROJECT := setup.cfg pyproject.toml
TESTS ?=
CHAOS ?=
SECONDS ?= 600
SEED ?=

.PHONY: help demo test lint bench chaos soak exhaustive clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/installed-demo
	$(BIN)/python examples/code_census.py --output build/census.parquet --kill-halfway

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks

chaos: $(VENV)/installed-dev
	PYTHONPATH=.:examples $(BIN)/python -m tests.chaos $(CHAOS)

soak: $(VENV)/installed-dev
	PYTHONPATH=.:examples:storage $(BIN)/python -m tests.simulation --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

exhaustive: $(VENV)/installed-dev
	PYTHONPATH=.:examples:storage $(BIN)/python -m tests.simulation --exhaustive
	PYTHONPATH=.:examples:storage $(BIN)/python -m tests.simulation --pairs

clean:
	rm -rf $(VENV) build

$(VENV)/installed-demo: $(VENV)/created $(PROJECT)
	@echo "Installing ray_durable into $(VENV) (a minute or two the first time)"
	@$(PIP_INSTALL) --editable '.[terminal]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/created $(PROJECT)
	@echo "Installing ray_durable and its development tools into $(VENV) (a minute or two the first time)"
	@$(PIP_INSTALL) --editable '.[test,lint]'
	@touch $@

# A command that exists need not work (version managers leave stubs), so each candidate has to tell its version.
$(VENV)/created:
	@for python in $${PYTHON:-python3.11 python3 python3.12 python3.13}; do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Creating $(VENV) with $$("$$python" --version)"; \
	        "$$python" -m venv --clear $(VENV); \
	        touch $@; \
	        exit 0; \
	    fi; \
	done; \
	echo "ray_durable needs Python 3.11 or later, and none of these is one: $${PYTHON:-python3.11 python3 python3.12 python3.13}." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv), or name yours: make PYTHON=/path/to/python" >&2; \
	exit 1
