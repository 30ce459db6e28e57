"""A real Prometheus scrapes an API of two processes: its alerts, the dashboard's queries, and what they find."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clip_queue.shared.job import FINAL
from tests.harness import Api, Service, Stack, free_port, stack, wait_for

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
START = 240.0
REQUESTS = 40

# In the continuous integration a machine without it is an error and nothing to be passed over.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("prometheus") is None and not os.environ.get("CI"),
        reason="needs prometheus: apt-get install prometheus",
    ),
]


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_configuration_are_right() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "alerts.test.yml")


def test_each_alert_is_tested_and_says_what_to_do(tmp_path: Path) -> None:
    rules = (MONITORING / "alerts.yml").read_text()
    names = re.findall(r"alert: (\w+)", rules)
    tests = (MONITORING / "alerts.test.yml").read_text()
    assert all(f'alertname="{name}"' in tests for name in names)
    assert rules.count("action: ") == rules.count("summary: ") == len(names)
    # And the tests can fail: an alert that never comes is missed.
    (tmp_path / "alerts.yml").write_text(rules.replace("> 5\n", "> 5000\n", 1))
    (tmp_path / "alerts.test.yml").write_text(tests)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts.test.yml"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.returncode == 1


class Watched:
    """A service with an API of two processes, and a Prometheus that has scraped it."""

    def __init__(self, it: Stack, api: Api, prometheus: str) -> None:
        self.stack, self.api = it, api
        self._http = httpx.Client(base_url=prometheus, timeout=30, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        response = self._http.get("/api/v1/query", params={"query": expression})
        assert response.status_code == 200, (expression, response.text)
        found: list[dict[str, Any]] = response.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The sum of what an expression finds; -1: nothing."""
        found = self.query(expression)
        return sum(float(each["value"][1]) for each in found) if found else -1.0

    def get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()["data"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("metrics")
    counts = folder / "counts"
    counts.mkdir()
    port, scraper = free_port(), free_port()
    config = (MONITORING / "prometheus.yml").read_text()
    config = config.replace("api:9001", f"127.0.0.1:{port}").replace("15s", "1s")
    config = config.replace("alerts.yml", str(MONITORING / "alerts.yml"))
    with stack(folder) as it:
        worker = it.worker()
        api = Api("clip_queue.api.app:app", folder, "api", {**it.env(), "PROMETHEUS_MULTIPROC_DIR": str(counts)})
        api.command += ["--workers", "2"]
        api.command[api.command.index("--port") + 1] = str(port)
        api.port, api.url = port, f"http://127.0.0.1:{port}"
        it.services.append(api)
        api.start()
        it.ready(worker, api, timeout=START)
        (folder / "prometheus.yml").write_text(config)
        address = f"127.0.0.1:{scraper}"
        options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        it.add(Service("prometheus", ["prometheus", *options, f"--web.listen-address={address}"], folder))
        found = Watched(it, api, f"http://{address}")
        for number in range(REQUESTS):
            # A connection each, so that both processes get some.
            body = {"text": f"text {number}"}
            assert httpx.post(f"{api.url}/clip/embed_text", json=body, timeout=60, trust_env=False).status_code == 200
        assert httpx.get(f"{api.url}/jobs/none", timeout=60, trust_env=False).status_code == 404

        def scraped() -> bool:
            try:
                return found.value('clip_queue_requests_total{route="/jobs/{job_id}"}') >= 1
            except httpx.HTTPError:
                return False

        wait_for(scraped, 120, "Prometheus to scrape")
        try:
            yield found
        finally:
            api.stop()  # killed, it would leave its two processes behind


def test_a_dataset_is_seen_while_it_is_embedded_and_its_rows_are_counted(watched: Watched, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text {number}\n" for number in range(30_000)))
    before = max(0.0, watched.value('clip_queue_bulk_rows_total{outcome="done"}'))
    command = [
        sys.executable,
        "-m",
        "clip_queue.cli",
        "embed",
        str(texts),
        str(tmp_path / "out"),
        "--shard-size",
        "500",
    ]
    run = watched.stack.add(Service("embed", command, tmp_path, {"CLIP_QUEUE_REDIS_URL": watched.stack.redis_url}))
    wait_for(lambda: watched.value("clip_queue_bulk_runs") == 1 or not run.alive, 120, "the run to be seen")
    wait_for(lambda: watched.value("clip_queue_bulk_rows_per_second") > 0 or not run.alive, 120, "its speed")
    assert run.alive, run.tail()
    wait_for(lambda: not run.alive, 240, "the run's end")
    assert run.process
    assert run.process.returncode == 0, run.tail()
    done = 'clip_queue_bulk_rows_total{outcome="done"}'
    wait_for(lambda: watched.value(done) - before == 30_000, 60, "all rows to be counted")
    wait_for(lambda: watched.value("clip_queue_bulk_runs") == 0, 60, "the run to be gone")
    assert watched.value("clip_queue_bulk_stalled_seconds") == 0
    assert watched.stack.valkey.client().exists("cq:live_runs") == 0


def test_the_target_is_up(watched: Watched) -> None:
    (target,) = watched.get("/api/v1/targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_whichever_process_is_scraped_it_tells_of_both(watched: Watched) -> None:
    assert watched.value('clip_queue_requests_total{route="/clip/embed_text",status="200"}') == REQUESTS
    assert watched.value('clip_queue_request_duration_seconds_count{route="/clip/embed_text"}') == REQUESTS
    assert watched.value('clip_queue_requests_total{status="404",code="unknown_job"}') == 1


def test_what_the_store_and_the_worker_know_is_there(watched: Watched) -> None:
    # At least: /readiness has the worker compute something now and then.
    assert watched.value('clip_queue_jobs_ended_total{lane="interactive",state="succeeded"}') >= REQUESTS
    assert watched.value("clip_queue_worker_items_total") >= REQUESTS
    assert watched.value('clip_queue_stage_duration_seconds_count{kind="embed_text",stage="forward"}') >= REQUESTS
    assert watched.value("clip_queue_workers") == 1
    assert watched.value("clip_queue_store_up") == 1
    assert watched.value("clip_queue_items") == 0
    assert {each["metric"]["state"] for each in watched.query("clip_queue_jobs_ended_total")} == set(FINAL)


def test_every_alert_can_be_evaluated_and_none_fires(watched: Watched) -> None:
    wait_for(lambda: all(r["health"] != "unknown" for r in rules(watched)), 60, "the rules to be evaluated")
    assert [(r["name"], r["health"], r.get("lastError"), r["state"]) for r in rules(watched)] == [
        (name, "ok", None, "inactive") for name in re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    ]


def rules(watched: Watched) -> list[dict[str, Any]]:
    return [rule for group in watched.get("/api/v1/rules")["groups"] for rule in group["rules"]]


def test_every_panel_of_the_dashboard_finds_something(watched: Watched) -> None:
    dashboard = json.loads((MONITORING / "dashboards/clip-queue.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 20
    for expression in expressions:
        asked = expression.replace("$__rate_interval", "5m")
        if "_gpu_" in expression:  # a worker on a CPU has none: that the query is right is all that can be seen
            assert watched.query(asked) == []
        else:
            wait_for(lambda asked=asked: watched.query(asked), 60, asked)


def test_what_the_api_says_is_well_formed(watched: Watched) -> None:
    for kind in "text/plain", "application/openmetrics-text":
        response = httpx.get(f"{watched.api.url}/metrics", headers={"Accept": kind}, timeout=60, trust_env=False)
        assert response.headers["content-type"].startswith(kind)
    text = httpx.get(f"{watched.api.url}/metrics", timeout=60, trust_env=False).text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
