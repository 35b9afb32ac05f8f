# `make` lists the targets. Nothing but python3 and make is needed; everything goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export PYTHONUTF8 := 1
# A package is compiled once, at its first import, and not anew in every process.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install repro results fresh test test-crash test-slow test-gpu test-all check format docs-data deps sentences lock bench study tables flow flow-stop compare ci-repro

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(BIN)/.runtime ## make .venv and install the locked packages into it

$(BIN)/uv:
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: -r .ci/uv.lock

$(BIN)/.runtime: requirements.lock pyproject.toml | $(BIN)/uv
	@echo "Installing the locked packages into .venv (about 6 GB, most of it torch)"
	@$(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

$(BIN)/.dev: requirements-dev.lock $(BIN)/.runtime
	@echo "Installing the locked test tools into .venv"
	@$(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements-dev.lock
	@touch $@

repro: $(BIN)/.runtime ## install, run what is stale of the pipeline, show the results
	@python -m metadiff.params
	dvc repro
	@metadiff results --next

results: $(BIN)/.runtime ## the result table of the last run
	@metadiff results

fresh: $(BIN)/.runtime ## recompute everything: no work folder, no run-cache
	rm -rf data/.work/*/run-*
	dvc repro --force --no-run-cache
	@metadiff results

test: $(BIN)/.dev ## the default tests: under five minutes on two cores
	pytest -n 2 --dist worksteal -m "not slow and not crash and not gpu"

test-slow: $(BIN)/.dev ## tests that take longer
	pytest -m "slow and not crash"

test-crash: $(BIN)/.dev ## kill real runs at random moments and compare the bytes
	pytest -n 2 -m crash

test-gpu: $(BIN)/.dev ## tests that need a CUDA device
	pytest -m gpu

test-all: test test-slow test-crash test-gpu ## all of them

check: $(BIN)/.dev ## lint, types, workflow files
	ruff check .
	ruff format --check .
	mypy
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	zizmor --offline --quiet .github/workflows

format: $(BIN)/.dev ## format the code
	ruff check --fix .
	ruff format .

bench: $(BIN)/.runtime ## measurements, each a table and a JSON file in bench/results
	python -m bench.pinning
	python -m bench.splits
	python -m bench.collect
	python -m bench.store
	python -m bench.memory
	python -m bench.sampling
	python -m bench.pickles
	python -m bench.prepare
	python -m bench.classifier

study: $(BIN)/.runtime ## make what is stale of a study, its table and its figure: make study NAME=few-shot
	dvc repro --single-item $(if $(NAME),studies/$(NAME)/dvc.yaml,$(error say which: make study NAME=few-shot))

tables: $(BIN)/.runtime ## write the table of every published study into its page
	python -m stages.table --pages

flow: $(BIN)/.runtime ## start a Prefect server and a worker for the deployment metadiff/full
	@python -m flows.local start

flow-stop: ## end them
	@python -m flows.local stop

compare: $(BIN)/.runtime ## this run and all experiments, by the columns that matter
	@metadiff compare

docs-data: $(BIN)/.runtime ## pages that show every data contract and what it found, in data/.work/docs
	@python -m stages.docs

deps: $(BIN)/.runtime ## write each stage's import graph into dvc.yaml
	python -m stages.imports

sentences: $(BIN)/.runtime ## write the embeddings of the built-in sentences; needs pip install -e '.[text]'
	python -m stages.sentences

lock: $(BIN)/.runtime ## resolve pyproject.toml again into the two lock files and constraints.txt
	.ci/lock

ci-repro: $(BIN)/.runtime ## what CI does with a change: rerun what it touches, show how params and metrics differ from BASE
	@.ci/repro $(or $(BASE),main) $(REPORT)
