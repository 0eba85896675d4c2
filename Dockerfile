# Image of a node of a cluster (head, worker, job) and of a run on one machine; docs/kubernetes.md explains its use.
#
#   docker build -t distkg:cpu .
#   docker build -t distkg:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .     # torch's CUDA wheels
#
# Everything lies in the interpreter of /usr/local, which stays on the path in the login shells that KubeRay opens.
ARG PYTHON_VERSION=3.11.13
FROM python:${PYTHON_VERSION}-slim-bookworm

# libgomp1: DGL. wget: KubeRay's probes. tini: the first process, which passes signals on to the command alone.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 tini wget \
    && rm -rf /var/lib/apt/lists/*

# torch goes first: the CPU wheel is a tenth of the CUDA wheel's size, and what follows takes the one that is there.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip install --no-cache-dir 'uv>=0.9,<1' \
    && uv pip install --system --no-cache --compile-bytecode 'torch==2.13.*' --index-url "$TORCH_INDEX"

# Libraries before the code, so that a change of the code does not install them again.
WORKDIR /opt/distkg
COPY pyproject.toml README.md ./
RUN uv pip install --system --no-cache --compile-bytecode -r pyproject.toml --extra cluster --extra ann --extra s3

COPY distkg ./distkg
COPY jobs ./jobs
RUN uv pip install --system --no-cache --compile-bytecode --no-deps .

RUN useradd --uid 1000 --user-group --create-home distkg

# Kernels are compiled for the processor that builds the image; on another one they are compiled at their first call.
ENV NUMBA_CACHE_DIR=/home/distkg/.cache/kernels
RUN distkg warm && chown -R 1000:1000 /home/distkg/.cache

# A number, so that Kubernetes can see that it is not root.
USER 1000:1000
WORKDIR /home/distkg
ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0

ENTRYPOINT ["tini", "--"]
CMD ["distkg", "--help"]
