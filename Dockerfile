# The CUDA image. Two stages: DeepSpeed is built where the CUDA compiler is, and the result moves
# to a base without it. The driver has to support CUDA 13.0.
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04 AS build
# Unpinned: Ubuntu's archive keeps no old versions.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv build-essential \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# The packages first: they change seldom, and a change of the source then rebuilds none of them.
COPY requirements/cuda.lock /build/cuda.lock
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN pip install --no-cache-dir "setuptools==81.0.0" "wheel==0.46.1" \
 && grep -v '^deepspeed==' /build/cuda.lock > /build/binary.txt \
 && pip install --no-cache-dir --no-deps --requirement /build/binary.txt \
 && grep '^deepspeed==' /build/cuda.lock > /build/source.txt \
 && pip install --no-cache-dir --no-deps --no-build-isolation --requirement /build/source.txt
COPY pyproject.toml README.md LICENSE NOTICE /build/
COPY dpo_dist /build/dpo_dist
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# A compiler and Python's headers: FlashInfer, Triton and DeepSpeed build kernels when they run.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-dev build-essential git tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home dpo \
 && mkdir -p /cache /workspace && chown dpo /cache /workspace
COPY --from=build /opt/venv /opt/venv
COPY --chown=dpo accelerate_configs /workspace/accelerate_configs
COPY --chown=dpo recipes /workspace/recipes
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
USER 10001
WORKDIR /workspace
VOLUME /cache
# Keys (ANTHROPIC_API_KEY, HF_TOKEN) come from the environment of `docker run`, never from here.
ENTRYPOINT ["tini", "-g", "--", "dpo-dist"]
CMD ["--help"]
