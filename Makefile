# Everything happens in .venv; nothing has to be installed by hand but Python 3.11 or newer (with its venv module) and make.
#
#   make setup       the environment: about a minute and 2 GB
#   make train       the main job: GRPO on a small policy, beside its baselines    ARGS="--method hive --steps 20" go to it
#   make test        the test suite                                                ARGS="tests/test_pool.py -x" go to pytest
#   make lint        ruff and mypy
#   make docs-test   only the examples of README, CONTRIBUTING and docs/
#   make chaos       every fault of docs/reliability.md at full length, and the page made of it          SEED=7 repeats a run
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
# Compiled modules are kept, also where a container's environment says otherwise: it makes every later start 8 s shorter.
export PYTHONDONTWRITEBYTECODE :=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup train test lint docs-test chaos bench clean

help:
	@sed -n '/^#   make/s/^#   //p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)
	@echo "$(VENV) is ready. Next: make train, make test, or $(VENV)/bin/edgewise --help"

# pip's exit status decides (pipefail). Its warnings and errors are shown, but for remarks on index folders that do not exist;
# everything it says is in the log.
LOG := $(VENV)/set-up.log
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input --quiet --no-color
QUIETLY := --log $(LOG) 2>&1 | sed "/^WARNING: Location '.*' is ignored/d" || { echo "Set-up failed. Everything pip said: $(LOG)" >&2; exit 1; }

# torch goes first and alone: where a CPU build is at hand pip takes that one, and nothing later replaces it by gigabytes of CUDA.
# Of the 15,000 modules only those that are used are compiled, by the first import, which also shows that the environment works.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgewise needs Python 3.11 or newer; $(PYTHON) is not. Try: make setup PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) (about a minute, 2 GB)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "  1/3 torch"
	@$(PIP) install --progress-bar off --no-compile --constraint constraints.txt torch $(QUIETLY)
	@echo "  2/3 edgewise and what it is tested with"
	@$(PIP) install --progress-bar off --no-compile --constraint constraints.txt --editable ".[dev]" $(QUIETLY)
	@echo "  3/3 first import"
	@$(PIP) check
	@$(VENV)/bin/python -W ignore::SyntaxWarning -c \
	  "import edgewise, matplotlib.pyplot, peft, reasoning_gym, scipy.stats; from trl import GRPOTrainer"
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

# The tests that note what they tried, each with an hour instead of five minutes (slow ones: make bench). The page is written only if
# all passed, and not if ARGS chose among them. A random case that fails is found again by its seed.
NOTES := runs/chaos.jsonl
SEED := $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
chaos: $(STAMP)
	@mkdir -p $(dir $(NOTES)) && rm -f $(NOTES)
	@echo "The same cases again: make chaos SEED=$(SEED)"
	EDGEWISE_CHAOS=1 EDGEWISE_SEED=$(SEED) EDGEWISE_LEDGER=$(abspath $(NOTES)) $(VENV)/bin/python -m pytest --timeout 3600 \
	  --hypothesis-seed $(SEED) $$($(VENV)/bin/python -m tests.ledger --tests) $(ARGS)
	$(if $(ARGS),@echo "ARGS chose among the tests: docs/reliability.md stays as it is",$(VENV)/bin/python -m tests.ledger $(NOTES))

bench: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: there is none
	@for script in benchmarks/*.py; do \
	  if [ -e "$$script" ]; then echo "$(VENV)/bin/python $$script"; $(VENV)/bin/python "$$script"; fi; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/edgewise.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
