# On a machine with git, make and Python >= 3.11:
#
#   make demo      train a small Emu end to end (FAST=1: every step at a small scale, in three minutes)
#   make test      run the tests: fast ones first, then complete commands and training runs
#   make setup     install the environment only
#   make parity    compare our modules with PyTorch's, in a separate environment (Python 3.11 only)
#   make lint      check style, types and shell scripts
#   make docs      build the documentation site in build/site
#   make lock      resolve pyproject.toml again into requirements*.txt and constraints.txt
#
# PYTHON=python3.12 (a name or a path) selects the interpreter; its environment is then .venv-3.12. TESTS="tests/data -k pack"
# selects tests for `make test` and `make test-fast`; WORKERS=8 runs more of them in parallel.

# The first of these that is new enough and has venv.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# torch without CUDA exists for Python 3.11 only.
PARITY_PYTHON ?= $(shell for p in $(PYTHON) python3.11 $(HOME)/.pyenv/versions/3.11*/bin/python3.11; do \
  $$p -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)

ifeq ($(origin PYTHON),command line)
  VENV ?= .venv$(patsubst -python%,-%,$(filter-out -python3 -python,-$(notdir $(PYTHON))))
else
  VENV ?= .venv
endif
PARITY_VENV = .venv-parity
RUN = $(VENV)/bin/python
TESTS ?= tests --ignore=tests/parity
# Tests mostly compile, on one core each; each file stays in one process, with its fixtures.
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --durations=10
WORKERS ?= 2

.PHONY: help setup demo test test-fast test-e2e parity lint docs lock
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^#[ ]\{0,1\}//p' Makefile

# ---- environments: made once, and again when their requirements change

# $(call environment,INTERPRETER,FOLDER,REQUIREMENTS)
define environment
  @test -x $(2)/bin/pip || { echo "making $(2) with $(1)"; $(1) -m venv $(2); }
  @echo "installing $(3) into $(2) (about a minute)"
  @$(2)/bin/python -m pip install -qq --disable-pip-version-check -r $(3)
  @$(2)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
  @touch $@
endef

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv found; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is not a Python >= 3.11 that can make environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(call environment,$(PYTHON),$(VENV),requirements.txt)

$(PARITY_VENV)/.installed: requirements-parity.txt
	@test -n "$(PARITY_PYTHON)" || { echo "error: parity requires Python 3.11 (torch installs CUDA on other versions) and none was found; name one: make parity PARITY_PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(call environment,$(PARITY_PYTHON),$(PARITY_VENV),requirements-parity.txt)

# ---- targets

demo: setup
	@$(RUN) -m emu_jax demo $(if $(filter-out 0,$(FAST)),--fast)

test: test-fast
	@$(MAKE) --no-print-directory test-e2e

test-fast test-e2e parity: export JAX_PLATFORMS = cpu
parity: export JAX_DISABLE_MOST_OPTIMIZATIONS = 0
# torch and JAX in one process: small models do not gain from threads that wait for a core
parity: export OMP_NUM_THREADS = 1

test-fast: setup
	$(RUN) $(PYTEST) $(TESTS) -m "not slow and not e2e"

test-e2e: setup
	$(RUN) $(PYTEST) $(TESTS) -m "e2e and not slow"

parity: $(PARITY_VENV)/.installed
	$(PARITY_VENV)/bin/python $(PYTEST) tests/parity -m "not slow"

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck .ci/run tools/tpu/*.sh

docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

# Extras are resolved together with the base, so that adding one later downgrades nothing. torch is added by name, because
# the resolver does not see its wheel without CUDA.
LOCK = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
  --no-emit-index-url --no-emit-find-links --upgrade
TORCH_NEEDS = filelock fsspec jinja2 networkx sympy
EXTRAS = dev gpu tpu compile beam wandb

lock:
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	@printf '%s\n' 'transformers>=5' 'diffusers>=0.36' $(TORCH_NEEDS) > .venv-lock/parity.in
	$(LOCK) pyproject.toml .venv-lock/parity.in $(EXTRAS:%=--extra %) -o constraints.txt
	$(LOCK) pyproject.toml --extra dev -c constraints.txt -o requirements.txt
	$(LOCK) pyproject.toml .venv-lock/parity.in --extra dev -c constraints.txt -o requirements-parity.txt
	@printf '%s\n' 'accelerate==1.15.0' 'peft==0.21.2' 'torch==2.13.0' >> requirements-parity.txt
	@sed -i '1i # Written by `make lock` from pyproject.toml: requirements of all commands and tests.' requirements.txt
	@sed -i '1i # Written by `make lock`: requirements.txt and the packages of `make parity` (Python 3.11).' requirements-parity.txt
	@sed -i "1i # Written by \`make lock\`: versions for every extra at once: pip install -c constraints.txt -e '.[tpu]'" constraints.txt
