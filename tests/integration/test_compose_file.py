"""The compose file as Docker Compose reads it."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.environments import clean_environment, program
from tests.harness import ROOT

pytestmark = pytest.mark.deploy


def test_compose_reads_it() -> None:
    profiles = ["--profile", "gpu", "--profile", "cpu", "--profile", "monitoring"]
    command = [program("deploy", "COMPOSE", "docker-compose"), *profiles, "config", "--format", "json"]
    read = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert read.returncode == 0, read.stderr
    services = json.loads(read.stdout)["services"]
    assert set(services) == {"redis", "api", "worker-gpu", "worker-cpu", "prometheus", "grafana"}
    assert services["worker-cpu"]["build"]["target"] == "worker-cpu"
    for ours in ("api", "worker-gpu", "worker-cpu"):
        assert services[ours]["read_only"]
        assert services[ours]["tmpfs"] == ["/tmp"]
        assert services[ours]["command"][0] in {"uvicorn", "celery"}
