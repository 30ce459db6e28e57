"""Where the chart's pods may go, and who may come to them."""

from __future__ import annotations

import pytest

from tests.chart import VALUES, Document, Rendered, environment, render, rendered, selected

pytestmark = pytest.mark.deploy


def egress(rendered: Rendered, component: str) -> list[Document]:
    policy = rendered.of("NetworkPolicy")[f"search-clip-queue-{component}"]
    found: list[Document] = policy["spec"]["egress"]
    return found


def ports(rule: Document) -> set[int]:
    return {port["port"] for port in rule.get("ports", ())}


@pytest.mark.parametrize("name", VALUES)
def test_each_pod_has_one_network_policy(name: str) -> None:
    it = rendered(name)
    chosen = [selected(it, p["spec"]["podSelector"]["matchLabels"]) for p in it.of("NetworkPolicy").values()]
    assert sorted(name for names in chosen for name in names) == sorted(it.of("Deployment"))
    for policy in it.of("NetworkPolicy").values():
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_a_worker_reaches_redis_and_no_more_where_weights_are_there() -> None:
    dns, redis = egress(rendered("two-models"), "worker")
    assert ports(dns) == {53}
    assert ports(redis) == {6379}
    assert rendered("two-models").of("NetworkPolicy")["search-clip-queue-worker"]["spec"]["ingress"] == []
    assert all(environment(worker)["HF_HUB_OFFLINE"] == "1" for worker in rendered("two-models").workers)
    *_, hub = egress(rendered("minimal"), "worker")
    assert ports(hub) == {443}
    assert "HF_HUB_OFFLINE" not in environment(rendered("minimal").workers[0])


def test_the_api_takes_requests_and_fetches_from_outside_the_cluster() -> None:
    (rule,) = rendered("minimal").of("NetworkPolicy")["search-clip-queue-api"]["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": 9001}]}
    *_, internet = egress(rendered("minimal"), "api")
    (four, six) = (peer["ipBlock"] for peer in internet["to"])
    assert (four["cidr"], six["cidr"]) == ("0.0.0.0/0", "::/0")
    assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(four["except"])
    (narrow,) = rendered("everything").of("NetworkPolicy")["search-clip-queue-api"]["spec"]["ingress"]
    assert narrow["from"]
    assert [ports(rule) for rule in egress(rendered("everything"), "worker")] == [{53}, {6380, 26379}, {443}, set()]
    assert render({"redis": {"url": "redis://redis"}, "networkPolicy": {"enabled": False}}).of("NetworkPolicy") == {}
