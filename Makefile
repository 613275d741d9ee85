# Unmask: two commands are all the set-up, `make serve` and `make test`. `make` alone lists the rest.
# Targets that need the environment depend on $(ENV): a stamp named after the lock's checksum. While the
# lock stays as it is, a second call installs nothing and touches no network.

SHELL := /bin/sh
.DEFAULT_GOAL := help

HOST = $(or $(UNMASK_HOST),127.0.0.1)
PORT = $(or $(UNMASK_PORT),7860)
RECIPE = model/pretrain/recipes/mini-random.toml
DATA = data
OUT = runs/mini-random
WEIGHTS = weights/mini.safetensors
IMAGE = unmask
TEST = data/imagenette-val-00000.tar
MINUTES = 10
# Tests of one file stay together: they share a server and a browser. Parallel workers whose threads spin while waiting
# slowed one file from 18 s to 105 s, hence OMP_NUM_THREADS=1. Files begin in the order that tests/conftest.py gives them.
SIDE_BY_SIDE = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

UV_VERSION := 0.13.9
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
OWN_UV := $(filter .uv/%,$(UV))
ENV := .venv/.installed-$(firstword $(shell cksum < requirements.lock))
PY := .venv/bin/python

.PHONY: help setup serve serve-cluster test test-fast check fix browser lock train evaluate judge bench bench-train prove-service test-cluster image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: $(ENV) ## make .venv and install the locked packages (serve and test do this by themselves)

serve: $(ENV) ## page and API on http://127.0.0.1:7860 (HOST= and PORT= change it)
	@exec env UNMASK_HOST='$(HOST)' UNMASK_PORT='$(PORT)' $(PY) -m server

serve-cluster: .venv-cluster/.installed ## the same on Ray Serve, two model replicas on this machine
	@exec env UNMASK_HOST='$(HOST)' UNMASK_PORT='$(PORT)' .venv-cluster/bin/python -m server cluster

test: $(ENV) browser check ## everything that guards a change: check, then all tests, including the page in a browser
	OMP_NUM_THREADS=1 $(PY) -m pytest $(SIDE_BY_SIDE)

test-fast: $(ENV) ## the tests to run while working: no browser, nothing slow
	$(PY) -m pytest -m 'not slow and not e2e'

check: $(ENV) ## format, lint, types, import contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache

fix: $(ENV) ## format, and fix what the linter can fix
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

browser: $(ENV)
	@$(PY) -m tests.browser

lock: | $(OWN_UV) ## write requirements.lock anew from pyproject.toml (the one lock: make, CI and Dockerfile)
	$(UV) pip compile pyproject.toml --group dev --universal --fork-strategy fewest --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet $(if $(UPGRADE),--upgrade) -o requirements.lock

train: $(ENV) ## train RECIPE= on DATA= into OUT=
	$(PY) -m model pretrain $(RECIPE) --data $(DATA) --out $(OUT)

evaluate: $(ENV) ## score WEIGHTS= on DATA= beside classical inpainting
	$(PY) -m model evaluate reconstruct $(WEIGHTS) --data $(DATA) --ratio 0.75 --json

judge: $(ENV) ## neighbours, probe, fine-tuning and scratch: WEIGHTS= on DATA= and TEST= with labels, MINUTES= each, into OUT=
	$(PY) -m model evaluate judge $(WEIGHTS) --data $(DATA) --test $(TEST) --minutes $(MINUTES) --out $(OUT)

bench: $(ENV) ## speed beside transformers, LitServe, BentoML and Ray Serve; writes docs/benchmarks.md (20 minutes, on a quiet machine)
	@$(PY) -m tests.bench.bench_forward --write
	@$(PY) -m tests.bench.bench_service --write --peers

prove-service: $(ENV) ## the long proofs, an hour or two: hostile input, the description, bombs, mix-ups, soak
	TEST_EXAMPLES=20000 $(PY) -m pytest --timeout 0 tests/server/test_fuzz.py
	TEST_EXAMPLES=200 TEST_PHASES=examples,coverage,fuzzing,stateful $(PY) -m pytest --timeout 0 tests/server/test_description.py
	$(PY) -m pytest tests/server/test_bombs.py
	$(PY) -m tests.bench.mixups
	$(PY) -m tests.bench.soak

test-cluster: .venv-cluster/.installed ## the tests that need Ray Serve: a replica dies under load
	.venv-cluster/bin/python -m pytest tests/server/test_cluster.py

bench-train: $(ENV) ## what training costs beside the reference recipe, on photos of DATA=; writes docs/benchmarks.md
	@$(PY) -m tests.bench.bench_train --data $(DATA) --write

image: ## docker build (IMAGE= names it)
	docker build --tag $(IMAGE) .

clean: ## remove the environment and every cache
	rm -rf .venv .venv-cluster .uv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis test-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that is there needs no uv. uv takes a fitting Python from this machine, or fetches one. Bytecode is compiled now, not at the first start.
$(ENV): | $(if $(wildcard $(ENV)),,$(OWN_UV))
	$(UV) venv --quiet --allow-existing .venv
	$(UV) pip sync --python $(PY) --require-hashes --compile-bytecode requirements.lock
	@rm -f .venv/.installed-* && touch $@

# Apart from .venv, for what Ray brings along would serve the plain service too. Ray itself is not in the lock.
.venv-cluster/.installed: requirements.lock | $(OWN_UV)
	$(UV) venv --quiet --allow-existing .venv-cluster
	$(UV) pip sync --python .venv-cluster/bin/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --python .venv-cluster/bin/python --compile-bytecode 'ray[serve]>=2.60,<3'
	@touch $@

# --target needs neither the venv module nor the right to write into the system's packages.
.uv/bin/uv:
	python3 -m pip install --quiet --target .uv uv==$(UV_VERSION)
