"""What may be said to the chart: the settings of the service, and what is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from clip_queue.shared.settings import Settings
from clip_queue.version import __version__
from tests.chart import CHART, Document, run

pytestmark = pytest.mark.deploy

REDIS = {"redis": {"url": "redis://redis:6379/0"}}
OF_THE_CHART = {"redis_url", "api_keys", "models", "device", "cache_dir", "data_dir", "valkey_maxmemory"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "redis.url or redis.existingSecret must be set"),
        ({"redis": {"url": "redis://a", "existingSecret": "b"}}, "give one"),
        ({"redis": {"url": "http://redis:6379"}}, "at '/redis/url'"),
        ({**REDIS, "settings": {"request_timeot": 3}}, "'request_timeot' not allowed"),
        ({**REDIS, "settings": {"api_keys": "k"}}, "'api_keys' not allowed"),
        ({**REDIS, "models": []}, "at '/models': minItems"),
        ({**REDIS, "models": [{"name": "ViT-B-16"}]}, "missing property 'gpu'"),
        ({**REDIS, "models": [{"name": "ViT-B-16", "gpu": 2}]}, "at '/models/0/gpu': maximum"),
        ({**REDIS, "models": [{"name": "a,b", "gpu": 0}]}, "at '/models/0/name'"),
        (
            {**REDIS, "models": [{"name": "M.1", "gpu": 0}, {"name": "m-1", "gpu": 0}]},
            "same name in Kubernetes: m-1",
        ),
        ({**REDIS, "replicas": 3}, "'replicas' not allowed"),
        ({**REDIS, "keda": {"enabled": True}}, "keda.prometheus must be set"),
        ({**REDIS, "keda": {"min": 0}}, "at '/keda/min'"),
        ({**REDIS, "ingress": {"enabled": True}}, "ingress.host must be set"),
        ({**REDIS, "api": {"readiness": "/metrics"}}, "at '/api/readiness'"),
    ],
)
def test_wrong_values_are_refused_by_name(values: Document, words: str) -> None:
    outcome = run(values)
    assert words in outcome.get("refused", ""), outcome


def test_the_schema_has_the_services_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["definitions"]["settings"]["properties"]) == set(Settings.model_fields) - OF_THE_CHART


def test_the_charts_version_is_the_services() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
