.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help setup setup-test demo demo-languages up down login status env test test-slow check audit format bench bench-data bench-train bench-release bench-containers bench-plan images base-image test-containers test-kubernetes chaos docs generate lock clean check-infra

# Fresh environments never cache bytecode where this is set, and every start is slow.
unexport PYTHONDONTWRITEBYTECODE

help: ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## the environments (.venv, .venv-orchestrator, .venv-mlflow) and the demo's text, from the lock files
	@bash scripts/setup.sh

setup-test: setup ## what only tests need: older transformers, a browser (where that is not possible it says so)
	@bash scripts/setup-test.sh

demo: setup ## everything: the stack, the whole DAG, results and links (PRESET=, OVERRIDES=, RUN_NAME=)
	@.venv-orchestrator/bin/python -m infra.local demo

demo-languages: setup ## languages that the demo reserved, added to its model: before and after (TEXT=, MODEL=, PRESET=, OVERRIDES=)
	@.venv-orchestrator/bin/python -m infra.local demo-languages

up: setup ## start S3, MLflow and Airflow on this machine; print links and login
	@.venv-orchestrator/bin/python -m infra.local up

down: ## stop the local stack; no process is left
	@.venv-orchestrator/bin/python -m infra.local down

login: ## links, users and passwords of the local Airflow and MLflow
	@.venv-orchestrator/bin/python -m infra.local login

status: ## what of the local stack is running
	@.venv-orchestrator/bin/python -m infra.local status

env: ## shell exports to run single components against the local stack: eval "$(make -s env)"
	@.venv-orchestrator/bin/python -m infra.local env

test: setup-test ## all tests but the slow ones; sets up first
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "not slow and not containers" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup-test ## tests that are too slow for every change
	@.venv/bin/python -m pytest -m slow

images: ## the images, with docker or podman (TARGETS=, BASE=, MMBERT_IMAGE_PREFIX=, MMBERT_IMAGE_TAG=, BUILD_ARGS=)
	@bash scripts/images.sh $(TARGETS)

base-image: ## a base image from Debian's packages, where no registry is reached: make images BASE=mmbert-base:bookworm
	@bash scripts/base-image.sh

test-containers: setup ## build the images and run every component in them
	@bash scripts/test-containers.sh

test-kubernetes: setup-test ## the launcher kubernetes, against a stand-in cluster, or MMBERT_KUBECONFIG's
	@bash scripts/test-kubernetes.sh

chaos: setup ## break everything, everywhere, and compare what was made to the byte (QUICK=1, SEED=, ONLY=, a pattern, KEEP=1)
	@OMP_NUM_THREADS=1 .venv/bin/python -m tests.chaos $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only '$(ONLY)') $(if $(KEEP),--keep)

check: setup ## formatting, lint, types, generated files, documentation
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/mmbert components generate --check
	@bash scripts/docs.sh

docs: setup ## the documentation as a site, in build/site; a link that leads nowhere is an error
	@bash scripts/docs.sh && echo "open build/site/index.html; with search, which browsers do not run from the disk: .venv-docs/bin/mkdocs serve"

check-infra: ## kustomize, Helm values, terraform and alert rules, checked offline; sets up what it needs (AIRFLOW_CHART=)
	@bash scripts/check-infra.sh

audit: setup ## licences and known vulnerabilities of what is installed (ADVISORIES=, a file, folder or zip in OSV's format)
	@.venv/bin/python scripts/audit.py $(if $(ADVISORIES),--advisories "$(ADVISORIES)")

format: ## format the code and write generated files anew
	@.venv/bin/ruff format --quiet .
	@.venv/bin/ruff check --quiet --fix .
	@.venv/bin/mmbert components generate

bench: setup ## benchmarks: each prints a table against a named peer in the same run
	@for script in benchmarks/bench_*.py; do .venv/bin/python $$script; done

bench-data: setup ## the data stage's goals, in under a quarter of an hour: lines 'figure: NAME VALUE UNIT (goal ...)'
	@.venv/bin/python benchmarks/bench_plan_3t.py --sizes 3T
	@for name in published_mixture dedup tokenize curate; do .venv/bin/python benchmarks/bench_$$name.py; done

bench-train: setup ## the training stage's goals, in under a quarter of an hour; GPU figures from committed results only
	@for name in head train_step loader; do .venv/bin/python benchmarks/bench_$$name.py; done
	@.venv/bin/python benchmarks/gpu_figures.py

bench-release: setup ## the release and evaluation stage's goals, in under a quarter of an hour
	@for name in convert evaluate variable_length retrieval_harness; do .venv/bin/python benchmarks/bench_$$name.py; done

bench-containers: setup ## what containers cost: the workflow in them, their start, their size (images are built before)
	@bash scripts/bench-containers.sh

bench-plan: setup ## the planner against trainings of the tiny preset here, and its memory formula against counts
	@for name in bench_plan plan_memory; do .venv/bin/python benchmarks/$$name.py; done

lock: ## resolve requirements/*.txt anew from pyproject.toml
	@bash scripts/lock.sh

clean: ## stop the stack and delete everything that can be made again
	@-[ -x .venv-orchestrator/bin/python ] && .venv-orchestrator/bin/python -m infra.local down
	@rm -rf .venv .venv-orchestrator .venv-mlflow .venv-infra .venv-docs infra/tools/node_modules .uv .local .cache build node_modules *.egg-info .mypy_cache .ruff_cache .hypothesis
