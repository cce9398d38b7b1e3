# One command for everything. `make help` lists them.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
# TORCH=cuda takes the default (CUDA) build; the CPU build is the default.
TORCH   ?= cpu
TORCH_VERSION := 2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

TAPE ?=
DEAL ?=
ADAPTER ?=
MAPPING ?=
MACRO ?=
RECIPE ?= base
SEED ?= 42
DATA ?= data
SHARED ?= ../shared/data
SEEDS ?= 1
ONLY ?=
FRESH ?=
SCENARIO ?=

export DAGSTER_HOME := $(CURDIR)
export PC_DATA := $(DATA)
export PC_RECIPE := $(RECIPE)
export PC_SEED := $(SEED)
export PC_DEAL := $(DEAL)
export PC_MACRO := $(MACRO)
# how threads split work must not change what a run prints
export OMP_NUM_THREADS ?= 2
# threads that wait sleep: spinning costs a shared machine up to ten times the run
export OMP_WAIT_POLICY ?= PASSIVE

RUN_OPTIONS := $(if $(TAPE),--tape "$(TAPE)") $(if $(ADAPTER),--adapter "$(ADAPTER)") \
               $(if $(MAPPING),--mapping "$(MAPPING)") $(foreach s,$(SCENARIO),--scenario "$(s)")

.PHONY: help setup run test test-all ui backfill lint format tiny bench fidelity clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## build .venv once

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cuda)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH_VERSION)"
else
	@echo "installing torch $(TORCH_VERSION), CPU build (TORCH=cuda for the other)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH_VERSION)+cpu" 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) "torch==$(TORCH_VERSION)" 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH_VERSION)"
endif
	@echo "installing pc_pipeline and what it needs"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

run: setup ## run the whole chain: TAPE=... DEAL=... RECIPE=tiny|base|full|paper SEED=... DATA=...
	@$(BIN)/pc run $(RUN_OPTIONS)

backfill: setup ## simulate all scenarios again, rerunning failed ones alone
	@$(BIN)/pc backfill $(foreach s,$(SCENARIO),--scenario "$(s)")

ui: setup ## open Dagster on 127.0.0.1:3000 with the same assets
	@$(BIN)/pc ui

test: setup ## the fast tests, on up to four cores
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test-all: setup ## all tests but those that need a GPU
	$(BIN)/python -m pytest -m "not gpu and not benchmark"

lint: setup ## style, types, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tiny: setup ## the tiny recipe through a Dagster instance of its own, in a temporary folder
	@folder=$$(mktemp -d) && cp workspace.yaml dagster.yaml $$folder/ && mkdir $$folder/data && cp -r data/deals $$folder/data/ \
	  && DAGSTER_HOME=$$folder PC_DATA=data PC_RECIPE=tiny $(BIN)/pc run; status=$$?; rm -rf $$folder; exit $$status

fidelity: setup ## every fidelity figure: ONLY=auto,macro RECIPE=base|full SEEDS=1 SHARED=../shared/data FRESH=
	$(BIN)/python -m benchmarks.fidelity --recipe $(RECIPE) --seeds $(SEEDS) --data $(SHARED) \
	  $(if $(ONLY),--only "$(ONLY)") $(if $(FRESH),--fresh)

clean: ## remove what runs made; keeps .venv and the deals
	rm -rf history storage schedules logs .logs_queue data/tables data/models data/reports data/warehouse.duckdb
