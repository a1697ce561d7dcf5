# Everything happens in .venv; nothing has to be installed by hand but Python 3.11 or newer (with its venv module) and make.
#
#   make setup       the environment: about two minutes and 2 GB
#   make train       the main job: GRPO on a small policy, beside its baselines    ARGS="--method hive --steps 20" go to it
#   make test        the test suite                                                ARGS="tests/test_pool.py -x" go to pytest
#   make lint        ruff and mypy
#   make docs-test   only the examples of README, CONTRIBUTING and docs/
#   make bench       the longer proofs and the measurements behind the README's figures
#   make clean       remove .venv and what tools leave behind; runs/ stays

PYTHON ?= python3
OUT ?= runs/train
ARGS ?=

VENV := .venv
STAMP := $(VENV)/.set-up

# One thread a process: two threads on a busy machine are many times slower than one. Tests and training never ask the network.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup train test lint docs-test bench clean

help:
	@sed -n '/^#   make/s/^#   //p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)

# pip's exit status decides (pipefail); only its remarks on index folders that do not exist are left out of what it says.
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input
QUIETLY := 2>&1 | sed "/^WARNING: Location '.*' is ignored/d"

# torch goes first and alone: where a CPU build is at hand pip takes that one, and nothing later replaces it by gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgewise needs Python 3.11 or newer; $(PYTHON) is not. Try: make setup PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) (about two minutes, 2 GB)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "  1/2 torch"
	@$(PIP) install --quiet --constraint constraints.txt torch $(QUIETLY)
	@echo "  2/2 edgewise and what it is tested with"
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]" $(QUIETLY)
	@$(PIP) check
	@touch $@

train: $(STAMP)
	$(VENV)/bin/edgewise train --out $(OUT) $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs-test: $(STAMP)
	$(VENV)/bin/python -m pytest tests/test_docs.py $(ARGS)

bench: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow $(ARGS)
	@for script in benchmarks/*.py; do \
	  if [ -e "$$script" ]; then echo "$(VENV)/bin/python $$script"; $(VENV)/bin/python "$$script"; fi; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/edgewise.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
