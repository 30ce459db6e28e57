# Two images from one file: `--target api` (no torch), `--target worker` (torch with its CUDA libraries).

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --create-home clip
WORKDIR /src
# What the dependencies are read from, and no more: a change of code does not install them again.
COPY pyproject.toml requirements.lock README.md LICENSE NOTICE ./
COPY clip_queue/__init__.py clip_queue/version.py clip_queue/

FROM base AS api
RUN pip install --constraint requirements.lock .
# The folders, and clip_queue's links to them, which the build follows.
COPY . .
RUN pip install --no-deps --force-reinstall .
USER clip
WORKDIR /home/clip
EXPOSE 9001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-m", "clip_queue.cli.health", "api"]
# No access log: an API key may stand in a query string.
CMD ["uvicorn", "clip_queue.api.app:app", "--http", "clip_queue.api.http_protocol:HttpProtocol", "--host", "0.0.0.0", "--port", "9001", "--no-access-log", "--no-server-header", \
     "--timeout-graceful-shutdown", "20"]

FROM base AS worker
# Requests and datasets; the Valkey that `serve` brings is a service of its own here.
RUN pip install --constraint requirements.lock ".[bulk]"
COPY . .
RUN pip install --no-deps --force-reinstall .
# A named volume mounted here takes this folder's owner.
RUN mkdir /weights && chown clip:clip /weights
ENV CLIP_QUEUE_CACHE_DIR=/weights HF_HOME=/weights/hub
USER clip
WORKDIR /home/clip
VOLUME /weights
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=600s CMD ["python", "-m", "clip_queue.cli.health", "worker"]
CMD ["celery", "-A", "clip_queue.worker.app", "worker", "--pool", "threads", "--loglevel", "INFO"]
