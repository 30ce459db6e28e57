"""Run in an environment that has Helm: ``python chart_renderer.py CHART < VALUES.json``.

Lints and renders the chart, and holds each object against Kubernetes's own schema. Prints JSON: ``objects``, ``notes``
and ``problems``, or ``refused`` with Helm's message. It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

KUBERNETES = ("1.27.0", "1.37.0")  # what the objects are held against, both unknown fields and wrong types
CUSTOM = ("ScaledObject", "ServiceMonitor")  # of other projects, whose schemas are not there
INFO = 1  # of a finding of lint


def problems_of(document: dict[str, Any]) -> list[str]:
    found = []
    for version in KUBERNETES if document["kind"] not in CUSTOM else ():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{document['kind']} {document['metadata']['name']} ({version}): {error.message}")
    return found


def outcome(chart: Path, values: dict[str, Any]) -> dict[str, Any]:
    try:
        with helm_python.Chart.load(chart) as loaded:
            rendered = loaded.render(values, name="search", namespace="prod")
    except helm_python.HelmError as error:
        return {"refused": str(error)}
    notes = "".join(text for path, text in rendered.items() if path.endswith("NOTES.txt"))
    manifests = [text for path, text in rendered.items() if not path.endswith("NOTES.txt")]
    objects = [document for text in manifests for document in yaml.safe_load_all(text) if document]
    lint = helm_python.lint(chart, values, strict=True, namespace="prod")["messages"]
    problems = [f"lint: {message['error']}" for message in lint if message["severity"] > INFO]
    return {"objects": objects, "notes": notes, "problems": problems + [p for o in objects for p in problems_of(o)]}


if __name__ == "__main__":
    print(json.dumps(outcome(Path(sys.argv[1]), json.load(sys.stdin))))
