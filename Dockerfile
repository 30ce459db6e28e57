# Three images from one file: `--target api` (no torch), `--target worker` (torch with its CUDA libraries) and
# `--target worker-cpu` (torch for CPUs, a quarter of the size). Each is an environment, built in a stage that has the
# tools, and copied into one that has Python alone. They run as a user, and with a read-only root file system: what they
# write goes to /tmp and /weights.

FROM python:3.12-slim AS build
# Bytecode is made here: where the file system is read-only, none can be made later.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/clip-queue
RUN pip install "uv>=0.5" && uv venv $VIRTUAL_ENV
WORKDIR /src
# What the dependencies are read from, and no more: a change of code does not install them again.
COPY pyproject.toml requirements.lock README.md LICENSE NOTICE ./
COPY clip_queue/__init__.py clip_queue/version.py clip_queue/

FROM build AS build-api
# For `/search`: --build-arg API_EXTRAS=tracing,outputs
ARG API_EXTRAS=tracing
RUN uv pip install --constraint requirements.lock ".[$API_EXTRAS]"
# The folders, and clip_queue's links to them, which the build follows.
COPY . .
RUN uv pip install --no-deps --reinstall .

FROM build AS build-worker
# Requests and datasets; the Valkey that `serve` brings is a service of its own here.
RUN uv pip install --constraint requirements.lock ".[bulk,gpu,hf,tracing]"
COPY . .
RUN uv pip install --no-deps --reinstall .

FROM build AS build-worker-cpu
# On x86 the torch of the package index is the one with CUDA. uv knows where torch's own build for CPUs is; with a
# mirror of your own instead: --build-arg TORCH_BACKEND= --build-arg TORCH_INDEX=https://…
ARG TORCH_BACKEND=cpu
ARG TORCH_INDEX=
RUN uv pip install ${TORCH_BACKEND:+--torch-backend $TORCH_BACKEND} ${TORCH_INDEX:+--index $TORCH_INDEX} \
    --constraint requirements.lock ".[bulk,hf,tracing]"
COPY . .
RUN uv pip install --no-deps --reinstall .

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/clip-queue/bin:$PATH
RUN useradd --uid 10001 --create-home clip
WORKDIR /home/clip
STOPSIGNAL SIGTERM

FROM base AS api
COPY --from=build-api /opt/clip-queue /opt/clip-queue
USER clip
EXPOSE 9001
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-m", "clip_queue.cli.health", "api"]
# No access log: an API key may stand in a query string.
CMD ["uvicorn", "clip_queue.api.app:app", "--http", "clip_queue.api.http_protocol:HttpProtocol", "--host", "0.0.0.0", "--port", "9001", "--no-access-log", "--no-server-header", \
     "--timeout-graceful-shutdown", "20"]

FROM base AS base-worker
# A named volume mounted here takes this folder's owner.
RUN mkdir /weights && chown clip:clip /weights
ENV CLIP_QUEUE_CACHE_DIR=/weights HF_HOME=/weights/hub
VOLUME /weights
USER clip
HEALTHCHECK --interval=15s --timeout=10s --start-period=600s CMD ["python", "-m", "clip_queue.cli.health", "worker"]
CMD ["celery", "--quiet", "-A", "clip_queue.worker.app", "worker", "--pool", "threads"]

FROM base-worker AS worker-cpu
COPY --from=build-worker-cpu /opt/clip-queue /opt/clip-queue
ENV CLIP_QUEUE_DEVICE=cpu

FROM base-worker AS worker
COPY --from=build-worker /opt/clip-queue /opt/clip-queue
