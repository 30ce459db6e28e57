"""The compose file and the Dockerfile, as text: what they promise, without an engine to run them."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_queue.shared.settings import Settings

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = ("api", "worker-gpu", "worker-cpu")
WATCHING = ("prometheus", "grafana")
TARGETS = ("api", "worker", "worker-cpu")


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return int(match[1])


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name, each with what it stands on before its own lines."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.replace("\\\n", ""), flags=re.MULTILINE)
    found: dict[str, str] = {}
    for image, name, lines in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        found[name] = found.get(image, "") + lines
    return found


def test_the_services() -> None:
    assert set(SERVICES) == {"redis", *OURS, *WATCHING}
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    assert all(service["restart"] == "unless-stopped" for service in SERVICES.values())


def test_redis_keeps_what_it_accepted() -> None:
    redis = SERVICES["redis"]
    assert "--appendonly yes" in redis["command"]
    assert "--maxmemory-policy noeviction" in redis["command"]
    assert re.search(r"--maxmemory \S", redis["command"])
    assert redis["volumes"] == ["queue:/data"]
    assert "ports" not in redis, "it has no password: only the services reach it"
    assert redis["healthcheck"]["test"]


@pytest.mark.parametrize("name", OURS)
def test_ours_wait_for_redis_and_hold_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert service["cap_drop"] == ["ALL"]
    assert service["build"]["target"] in stages()
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]


def test_each_worker_has_the_image_for_its_device() -> None:
    images = {name: (SERVICES[name]["image"], SERVICES[name]["build"]["target"]) for name in OURS}
    assert images == {
        "api": ("clip-queue-api", "api"),
        "worker-gpu": ("clip-queue-worker", "worker"),
        "worker-cpu": ("clip-queue-worker-cpu", "worker-cpu"),
    }


@pytest.mark.parametrize("name", OURS)
def test_no_secret_is_written_down(name: str) -> None:
    service = SERVICES[name]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    assert not any("KEY" in variable for variable in service["environment"])
    assert ".env" not in re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("name", OURS)
def test_every_setting_named_exists(name: str) -> None:
    named = {v for v in SERVICES[name]["environment"] if v.startswith("CLIP_QUEUE_")}
    named |= set(re.findall(r"(CLIP_QUEUE_\w+)=", DOCKERFILE))
    assert named <= {f"CLIP_QUEUE_{field.upper()}" for field in Settings.model_fields}


def test_the_api_is_open_to_this_machine_alone_unless_told() -> None:
    assert SERVICES["api"]["ports"] == ["${CLIP_QUEUE_PUBLISH:-127.0.0.1}:9001:9001"]


@pytest.mark.parametrize("name", WATCHING)
def test_those_who_watch_come_when_asked_for_and_find_their_files(name: str) -> None:
    service = SERVICES[name]
    assert service["profiles"] == ["monitoring"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    mounts = [mount.split(":") for mount in service["volumes"] if mount.startswith("./")]
    assert mounts
    for path, _, mode in mounts:
        assert (ROOT / path).exists()
        assert mode == "ro"


def test_stopping_leaves_time_to_finish() -> None:
    drain = Settings.model_fields["drain_timeout"].default
    for name in ("worker-gpu", "worker-cpu"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > drain
    match = re.search(r"--timeout-graceful-shutdown (\d+)", SERVICES["api"]["command"])
    assert match
    assert seconds(SERVICES["api"]["stop_grace_period"]) > int(match[1])


def test_the_gpu_worker_reserves_a_gpu_and_keeps_its_weights() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    for service, target in ("worker-gpu", "worker"), ("worker-cpu", "worker-cpu"):
        assert SERVICES[service]["volumes"] == ["weights:/weights"]
        assert "CLIP_QUEUE_CACHE_DIR=/weights" in stages()[target]
        assert "chown clip:clip /weights" in stages()[target]


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_a_user_and_check_their_health(target: str) -> None:
    stage = stages()[target]
    assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["clip"]
    assert f'"clip_queue.cli.health", "{target.partition("-")[0]}"]' in stage


@pytest.mark.parametrize("target", TARGETS)
def test_images_have_the_environment_and_not_what_built_it(target: str) -> None:
    """Pinned, compiled once, and found: a read-only file system takes no bytecode later."""
    stage, build = stages()[target], stages()[f"build-{target}"]
    assert f"COPY --from=build-{target} /opt/clip-queue /opt/clip-queue\n" in stage
    assert "PATH=/opt/clip-queue/bin:$PATH" in stage
    assert "pip install" not in stage
    assert "--constraint requirements.lock" in build
    assert "uv venv $VIRTUAL_ENV" in build
    assert "VIRTUAL_ENV=/opt/clip-queue" in build
    assert "UV_COMPILE_BYTECODE=1" in build


def installed(target: str) -> set[str]:
    """The extras that a stage installs, unless the build is told otherwise."""
    stage = stages()[f"build-{target}"]
    for name, default in re.findall(r"^ARG (\w+)=(.*)$", stage, re.MULTILINE):
        stage = stage.replace(f"${name}", default)
    return {extra.strip() for named in re.findall(r'pip install .*"\.\[(.*?)\]"', stage) for extra in named.split(",")}


def test_the_api_image_has_no_torch_and_the_worker_images_no_valkey() -> None:
    extras = PROJECT["optional-dependencies"]
    assert installed("api") == {"tracing"}
    assert not any(re.match(r"torch|open.clip|pyarrow|fsspec", need) for need in PROJECT["dependencies"])
    assert installed("worker") == {"bulk", "gpu", "hf", "tracing"}
    assert installed("worker-cpu") == {"bulk", "hf", "tracing"}
    assert "clip-queue[worker]" in extras["bulk"]
    needs = [need for extra in ("bulk", "worker", "gpu", "hf", "tracing") for need in extras[extra]]
    assert not any("valkey" in need or "embedded" in need for need in needs)


def test_the_cpu_image_asks_for_torch_without_cuda() -> None:
    (install,) = re.findall(r"^RUN (uv pip install .*bulk.*)$", stages()["build-worker-cpu"], re.MULTILINE)
    words = ["sh", "-c", f"TORCH_BACKEND=cpu TORCH_INDEX=; echo {install}"]
    assert "--torch-backend cpu --constraint" in subprocess.run(words, capture_output=True, text=True).stdout
    assert "TORCH_BACKEND=cpu\n" in stages()["build-worker-cpu"]
    assert "torch-backend" not in stages()["build-worker"]
    mirror = ["sh", "-c", f"TORCH_BACKEND= TORCH_INDEX=here; echo {install}"]
    assert "install --index here --constraint" in subprocess.run(mirror, capture_output=True, text=True).stdout.replace(
        "  ", " "
    )


def test_what_the_build_reads_is_in_its_context() -> None:
    """The folders behind the package's links, and the files that are copied before them."""
    named = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    links = [path for path in (ROOT / "clip_queue").iterdir() if path.is_symlink()]
    assert {link.readlink().name for link in links} == {link.name for link in links}
    assert {link.name for link in links} <= set(named)
    copied = re.findall(r"^COPY (?!\.|--from)(.*) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for path in (path for paths in copied for path in paths.split()):
        assert (ROOT / path).is_file()
        assert path.partition("/")[0] in named
    assert set(PROJECT["license-files"]) | {PROJECT["readme"], "pyproject.toml"} <= set(copied[0].split())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    assert version in copied[1].split()


@pytest.mark.parametrize(
    ("service", "target"), [("api", "api"), ("worker-cpu", "worker-cpu"), ("worker-gpu", "worker")]
)
def test_compose_and_image_start_the_same_command(service: str, target: str) -> None:
    match = re.search(r"^CMD (\[.*?\])", stages()[target].replace("\\\n", ""), re.MULTILINE)
    assert match
    assert SERVICES[service]["command"].split() == json.loads(match[1])
