"""The Helm chart as Helm renders it, for tests: its objects, and what is asked of them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import yaml

from tests.environments import clean_environment, program
from tests.harness import ROOT

CHART = ROOT / "deploy" / "kubernetes" / "clip-queue"
RENDERER = ROOT / "tests" / "integration" / "chart_renderer.py"
VALUES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))

Document = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """What the chart makes of values; the release is ``search``."""

    objects: list[Document]
    notes: str
    problems: list[str]

    def of(self, kind: str) -> dict[str, Document]:
        """The objects of a kind, by name."""
        return {found["metadata"]["name"]: found for found in self.objects if found["kind"] == kind}

    @cached_property
    def api(self) -> Document:
        return self.of("Deployment")["search-clip-queue-api"]

    @cached_property
    def workers(self) -> list[Document]:
        return [found for name, found in self.of("Deployment").items() if "-worker-" in name]

    @property
    def deployments(self) -> list[Document]:
        return [self.api, *self.workers]


def run(values: Document) -> Document:
    command = [program("deploy", "DEPLOY_PYTHON"), str(RENDERER), str(CHART)]
    done = subprocess.run(
        command, input=json.dumps(values), env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    outcome: Document = json.loads(done.stdout)
    return outcome


@lru_cache
def rendered(name: str) -> Rendered:
    return render(yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text()))


def render(values: Document) -> Rendered:
    outcome = run(values)
    assert "refused" not in outcome, outcome
    return Rendered(**outcome)


def pod(deployment: Document) -> Document:
    spec: Document = deployment["spec"]["template"]["spec"]
    return spec


def container(deployment: Document) -> Document:
    (found,) = pod(deployment)["containers"]
    return dict(found)


def environment(deployment: Document) -> dict[str, str]:
    """The variables of a container that are written down, not in a Secret."""
    return {variable["name"]: variable["value"] for variable in container(deployment)["env"] if "value" in variable}


def labels(deployment: Document) -> dict[str, str]:
    found: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return found


def selected(rendered: Rendered, selector: dict[str, str]) -> list[str]:
    """The deployments whose pods a selector finds."""
    return [d["metadata"]["name"] for d in rendered.deployments if selector.items() <= labels(d).items()]
