# Two images from one file:
#
#   docker build --tag dpo-dist:0.1.0 .                       CUDA; the driver must support 13.0
#   docker build --target cpu --tag dpo-dist:0.1.0-cpu .      no GPU: the demo, CI
#
# Stages that change rarely come first: after a change of the source, only its wheel and one small
# layer on top of the cached packages are built again. API keys are passed to `docker run`, never to
# the build: no layer contains a key.

# The project's wheel, for both images.
FROM python:3.11.14-slim-bookworm AS project
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "setuptools==81.0.0" "wheel==0.46.1"
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY dpo_dist /src/dpo_dist
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /src

# The files that a run reads in addition to the package. `launch/` is not needed: `dpo-dist launch`
# renders it.
FROM scratch AS workspace
COPY dpo_dist/accelerate_configs /workspace/accelerate_configs
COPY dpo_dist/recipes /workspace/recipes

# The locked packages for CUDA. The image includes CUDA's compiler, because the build of DeepSpeed
# looks for it.
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04 AS cuda-packages
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Not pinned, here and below: these archives keep no old versions.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv build-essential \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/cuda.lock /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "setuptools==81.0.0" "wheel==0.46.1" \
 && grep -v '^deepspeed==' /build/cuda.lock > /build/binary.txt \
 && pip install --no-deps --requirement /build/binary.txt
# Without build isolation, because DeepSpeed is built against the installed torch.
RUN --mount=type=cache,target=/root/.cache/pip \
    grep '^deepspeed==' /build/cuda.lock > /build/source.txt \
 && pip install --no-deps --no-build-isolation --requirement /build/source.txt

# The locked packages for the CPU, including those for development, as `make setup` installs them.
FROM python:3.11.14-slim-bookworm AS cpu-packages
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/cpu.lock /build/
# The index of torch's CPU build, if the default index has another build: --build-arg
# TORCH_ARGS="--index-url ...", as for `make setup`.
ARG TORCH_ARGS=""
# TORCH_ARGS is not quoted, because it has several words; hadolint's shellcheck expects quotes.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "setuptools==81.0.0" "wheel==0.46.1" \
 && grep '^torch==' /build/cpu.lock > /build/torch.txt \
 && pip install $TORCH_ARGS --requirement /build/torch.txt \
 && grep -v '^deepspeed==' /build/cpu.lock > /build/binary.txt \
 && pip install --no-deps --requirement /build/binary.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    grep '^deepspeed==' /build/cpu.lock > /build/source.txt \
 && pip install --no-deps --no-build-isolation --requirement /build/source.txt

FROM python:3.11.14-slim-bookworm AS cpu
# A compiler for torch's and DeepSpeed's kernels; git and make for the tests of a mounted checkout.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential git libnuma1 make tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home dpo \
 && install --directory --owner=10001 --group=10001 /cache /workspace /workspace/runs
COPY --link --from=cpu-packages /opt/venv /opt/venv
COPY --link --chown=10001:10001 --from=workspace /workspace /workspace
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface VLLM_CACHE_ROOT=/cache/vllm \
    FLASHINFER_WORKSPACE_BASE=/cache/flashinfer \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor TRITON_CACHE_DIR=/cache/triton
RUN --mount=type=bind,from=project,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl
USER 10001:10001
WORKDIR /workspace
ENTRYPOINT ["tini", "--", "dpo-dist"]
CMD ["--help"]

# The last stage is the default target. CUDA's libraries come with torch. Of the toolkit, only the
# parts are installed with which FlashInfer and DeepSpeed build kernels for the GPU at run time.
# Without the RDMA libraries, NCCL would use sockets between machines.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
      python3 python3-dev build-essential git tini \
      cuda-nvcc-13-0 cuda-cudart-dev-13-0 libcurand-dev-13-0 \
      libibverbs1 ibverbs-providers librdmacm1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home dpo \
 && install --directory --owner=10001 --group=10001 /cache /workspace /workspace/runs
COPY --link --from=cuda-packages /opt/venv /opt/venv
COPY --link --chown=10001:10001 --from=workspace /workspace /workspace
ENV PATH=/opt/venv/bin:/usr/local/cuda-13.0/bin:$PATH CUDA_HOME=/usr/local/cuda-13.0 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface VLLM_CACHE_ROOT=/cache/vllm \
    FLASHINFER_WORKSPACE_BASE=/cache/flashinfer \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor TRITON_CACHE_DIR=/cache/triton
RUN --mount=type=bind,from=project,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl
USER 10001:10001
WORKDIR /workspace
# Not `tini -g`: only `dpo-dist` should get SIGTERM; it tells its processes to save. If an engine also
# got the signal, it would end before its worker.
ENTRYPOINT ["tini", "--", "dpo-dist"]
CMD ["--help"]
