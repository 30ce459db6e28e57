"""The Helm chart: rendered by Helm itself, held against Kubernetes's schemas, and what it promises."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from clip_queue.shared.models import parse_models
from clip_queue.shared.settings import Settings
from clip_queue.version import __version__
from tests.chart import (
    VALUES,
    Document,
    container,
    environment,
    pod,
    render,
    rendered,
    selected,
)
from tests.harness import ROOT

pytestmark = pytest.mark.deploy

REDIS = {"redis": {"url": "redis://redis:6379/0"}}


@pytest.mark.parametrize("name", VALUES)
def test_helm_and_kubernetes_take_it(name: str) -> None:
    assert rendered(name).problems == []


@pytest.mark.parametrize("name", VALUES)
def test_each_selector_finds_its_pods(name: str) -> None:
    it = rendered(name)
    for deployment in it.deployments:
        assert selected(it, deployment["spec"]["selector"]["matchLabels"]) == [deployment["metadata"]["name"]]
    for service in it.of("Service").values():
        assert selected(it, service["spec"]["selector"]) == ["search-clip-queue-api"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {
            port["name"] for port in container(it.api)["ports"]
        }
    assert it.of("PodDisruptionBudget").keys() == it.of("Deployment").keys()
    for budget_name, budget in it.of("PodDisruptionBudget").items():
        assert selected(it, budget["spec"]["selector"]["matchLabels"]) == [budget_name]
    for monitor in it.of("ServiceMonitor").values():
        (service,) = it.of("Service").values()
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "clip-queue"  # the job that alerts name
    for ingress in it.of("Ingress").values():
        backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        assert backend["name"] in it.of("Service")


@pytest.mark.parametrize("name", VALUES)
def test_no_pod_has_rights(name: str) -> None:
    for deployment in rendered(name).deployments:
        assert pod(deployment)["automountServiceAccountToken"] is False
        # CLIP_QUEUE_API_PORT=tcp://… would be there with a release of the name clip-queue.
        assert pod(deployment)["enableServiceLinks"] is False
        security = pod(deployment)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        match = re.search(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())
        assert match
        assert security["runAsUser"] == security["fsGroup"] == int(match[1])
        own = container(deployment)["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert {"name": "tmp", "mountPath": "/tmp"} in container(deployment)["volumeMounts"]
        assert {m["name"] for m in container(deployment)["volumeMounts"]} == {
            v["name"] for v in pod(deployment)["volumes"]
        }


@pytest.mark.parametrize("name", VALUES)
def test_the_end_leaves_time_to_finish(name: str) -> None:
    it = rendered(name)
    command, stop = container(it.api)["command"], container(it.api)["lifecycle"]["preStop"]["exec"]["command"]
    shutdown = int(command[command.index("--timeout-graceful-shutdown") + 1])
    assert stop[0] == "sleep"
    assert int(stop[1]) > 0
    assert pod(it.api)["terminationGracePeriodSeconds"] > shutdown + int(stop[1])
    for worker in it.workers:
        drain = float(
            environment(worker).get("CLIP_QUEUE_DRAIN_TIMEOUT", Settings.model_fields["drain_timeout"].default)
        )
        assert pod(worker)["terminationGracePeriodSeconds"] >= drain + 20


def test_a_models_own_drain_timeout_counts() -> None:
    assert [pod(worker)["terminationGracePeriodSeconds"] for worker in rendered("two-models").workers] == [115, 66]
    command = container(rendered("two-models").api)["command"]
    assert command[-2:] == ["--timeout-graceful-shutdown", "45"]
    assert pod(rendered("two-models").api)["terminationGracePeriodSeconds"] == 65


@pytest.mark.parametrize("name", VALUES)
def test_the_probes(name: str) -> None:
    it = rendered(name)
    api = container(it.api)
    assert api["livenessProbe"]["httpGet"]["path"] == api["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert api["readinessProbe"]["httpGet"]["path"] == ("/healthz" if name == "everything" else "/readiness")
    for worker in map(container, it.workers):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert worker[probe]["exec"]["command"] == ["python", "-m", "clip_queue.cli.health", "worker"]
            assert worker[probe]["timeoutSeconds"] > 4  # of its own
        start, live = worker["startupProbe"], worker["livenessProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 30 * 60  # to fetch weights
        assert live["periodSeconds"] * live["failureThreshold"] >= 10 * 60  # a Redis that is away ends no worker
    for deployment in it.workers:
        start = container(deployment)["startupProbe"]
        assert deployment["spec"]["progressDeadlineSeconds"] > start["periodSeconds"] * start["failureThreshold"]


@pytest.mark.parametrize("name", VALUES)
def test_pods_start_what_the_images_start(name: str) -> None:
    commands = [json.loads(c) for c in re.findall(r"^CMD (\[.*?\])", dockerfile(), re.MULTILINE)]
    api, worker = next(c for c in commands if c[0] == "uvicorn"), next(c for c in commands if c[0] == "celery")
    assert container(rendered(name).api)["command"][:-1] == api[:-1]  # the last is the time to finish
    for found in rendered(name).workers:
        assert container(found)["command"] == worker


def test_lines_of_json_come_without_a_banner(monkeypatch: pytest.MonkeyPatch) -> None:
    (worker,) = render({**REDIS, "settings": {"log_format": "json", "log_level": "WARNING"}}).workers
    command = container(worker)["command"]
    assert command.index("--quiet") < command.index("worker")
    assert "--loglevel" not in command, "it would go before the setting"
    assert settings(worker, monkeypatch).log_level == "WARNING"


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text().replace("\\\n", "")


def settings(deployment: Document, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a process of a pod would read."""
    with monkeypatch.context() as patch:
        for name, value in environment(deployment).items():
            patch.setenv(name, value)
        return Settings(_env_file=None)


def test_the_environment_is_read_as_it_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    it = rendered("two-models")
    api, (large, small) = settings(it.api, monkeypatch), (settings(worker, monkeypatch) for worker in it.workers)
    assert list(parse_models(api.models)) == ["ViT-L-14-336px", "b32"]
    assert (large.models, small.models) == (["ViT-L-14-336px"], ["b32=ViT-B-32/laion2b_s34b_b79k"])
    assert (large.device, small.device) == ("cuda", "cpu")
    assert (large.batch_size, small.batch_size) == (64, 0)
    assert (large.drain_timeout, small.drain_timeout, api.drain_timeout) == (90, 40.5, 40.5)
    assert {found.max_body_bytes for found in (api, large, small)} == {67108864}
    assert api.metrics == "open"
    everything = settings(rendered("everything").api, monkeypatch)
    assert everything.fetch_allow_hosts == ["images.example.org", "*.example.net"]
    assert environment(it.workers[0])["HF_HOME"].startswith(environment(it.workers[0])["CLIP_QUEUE_CACHE_DIR"])


def test_a_models_setting_may_be_nothing_where_all_have_something(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "ViT-B-16", "gpu": 0, "settings": {"text_cache_size": 0, "interactive_jobs": False}}
    shared = {"text_cache_size": 50, "interactive_jobs": True}
    (worker,) = render({**REDIS, "settings": shared, "models": [model]}).workers
    assert settings(worker, monkeypatch).text_cache_size == 0
    assert not settings(worker, monkeypatch).interactive_jobs


def secrets(deployment: Document) -> dict[str, Document]:
    """The variables of a container that a Secret has."""
    return {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container(deployment)["env"] if "valueFrom" in v}


@pytest.mark.parametrize("name", VALUES)
def test_secrets_stand_in_a_secret(name: str) -> None:
    it = rendered(name)
    for deployment in it.deployments:
        assert "redis://" not in json.dumps(deployment)
        assert "rediss://" not in json.dumps(deployment)
        api_keys = name == "everything" and deployment is it.api  # workers need none
        assert set(secrets(deployment)) == {"CLIP_QUEUE_REDIS_URL", *(["CLIP_QUEUE_API_KEYS"] if api_keys else [])}
        for reference in secrets(deployment).values():
            if name == "two-models":  # a Secret that is there
                assert reference == {"name": "queue", "key": "url"}
            else:
                assert reference["key"] in it.of("Secret")[reference["name"]]["stringData"]


def test_who_sets_no_keys_is_told() -> None:
    assert rendered("two-models").of("Secret") == {}
    (secret,) = rendered("everything").of("Secret").values()
    assert secret["stringData"]["api-keys"] == "one,two"
    assert "open to whoever" in rendered("minimal").notes
    assert "open to whoever" not in rendered("everything").notes


def test_folders_of_datasets_are_mounted_in_api_and_workers() -> None:
    it = rendered("everything")
    for deployment in (it.api, *it.workers):
        assert {"name": "data", "mountPath": "/data"} in container(deployment)["volumeMounts"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "datasets"}} in pod(deployment)["volumes"]
        assert {"name": "tmp", "emptyDir": {}} in pod(deployment)["volumes"]


def test_gpus_and_images() -> None:
    large, small = rendered("two-models").workers
    assert container(large)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container(large)["image"] == f"clip-queue-worker:{__version__}"
    assert "nvidia.com/gpu" not in container(small)["resources"]["limits"]
    assert container(small)["image"] == f"clip-queue-worker-cpu:{__version__}"
    assert pod(large)["nodeSelector"] == {"accelerator": "l4"}
    assert pod(large)["tolerations"]
    assert "nodeSelector" not in pod(small)
    # The only GPU is given back before it is asked for again.
    assert large["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert small["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert container(rendered("everything").api)["image"] == "registry.example.org/team/clip-queue-api:7"


def test_weights_are_kept_where_the_values_say() -> None:
    def volume(worker: Document) -> Any:
        return next(volume for volume in pod(worker)["volumes"] if volume["name"] == "weights")

    assert volume(rendered("minimal").workers[0])["emptyDir"] == {}
    assert volume(rendered("two-models").workers[0])["persistentVolumeClaim"]["claimName"] == "weights"
    claim = volume(rendered("everything").workers[0])["persistentVolumeClaim"]["claimName"]
    assert rendered("everything").of("PersistentVolumeClaim").keys() == {claim}


def test_what_is_scaled_has_no_number_of_its_own() -> None:
    everything = rendered("everything")
    scaled = {found["spec"]["scaleTargetRef"]["name"] for found in everything.of("ScaledObject").values()}
    scaled |= {found["spec"]["scaleTargetRef"]["name"] for found in everything.of("HorizontalPodAutoscaler").values()}
    assert scaled == set(everything.of("Deployment"))
    assert all("replicas" not in deployment["spec"] for deployment in everything.deployments)
    assert [d["spec"]["replicas"] for d in rendered("two-models").deployments] == [3, 2, 1]
    none = render({**REDIS, "models": [{"name": "ViT-B-16", "gpu": 0, "replicas": 0}]})
    assert none.workers[0]["spec"]["replicas"] == 0


def test_workers_are_scaled_on_the_figures_that_are_there() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    for scaled in rendered("everything").of("ScaledObject").values():
        for trigger in scaled["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            (metric,) = re.findall(r"clip_queue_\w+", query)
            assert f"`{metric}`" in metrics
            assert 'namespace="search"' in query
            assert float(trigger["metadata"]["threshold"]) in {1, 5_000_000}
            assert "e" not in trigger["metadata"]["threshold"]
    vit, siglip = rendered("everything").of("ScaledObject").values()
    assert 'model="ViT-B-16"' in vit["spec"]["triggers"][0]["metadata"]["query"]
    assert (vit["spec"]["minReplicaCount"], vit["spec"]["maxReplicaCount"]) == (2, 6)
    assert (siglip["spec"]["minReplicaCount"], siglip["spec"]["maxReplicaCount"]) == (1, 4)
