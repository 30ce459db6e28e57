"""``clip-queue status`` and ``clip-queue jobs`` against a real service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest

from tests.harness import ROOT, Api, Stack, free_port, wait_for
from tests.jobs_api import submit_texts, succeeded
from tests.team import START, Team
from tests.wire import embed_texts, ok

pytestmark = pytest.mark.timeout(600)

KEY = "key-of-who-looks-91c2"
ENDED = 120.0  # seconds that a command may take on a loaded machine


def command(url: str, *arguments: str, key: str = "") -> list[Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLIP_QUEUE_")}
    env |= {"PYTHONPATH": str(ROOT), "CLIP_QUEUE_URL": url, "COLUMNS": "200"} | (
        {"CLIP_QUEUE_API_KEY": key} if key else {}
    )
    return [[sys.executable, "-m", "clip_queue.cli", *arguments], env]


def run(url: str, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    line, env = command(url, *arguments, key=key)
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=ENDED, check=False)


def test_status_of_a_service_that_works(served: tuple[Stack, Api], http: httpx.Client) -> None:
    ok(embed_texts(http, ["looked at", "twice"]))
    done = run(served[1].url, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{served[1].url} ready" in done.stdout
    assert "1 on cpu" in done.stdout
    for lane in ("interactive", "background", "bulk"):
        assert lane in done.stdout
    found = json.loads(run(served[1].url, "status", "--json").stdout)
    assert found["problem"] is None
    assert found["workers_of"] == {"emoji-mini": {"cpu": 1}}
    (worker,) = found["workers"]
    assert worker["items"] >= 2
    assert worker["batches"] >= 1
    interactive = next(lane for lane in found["lanes"] if lane["lane"] == "interactive")
    assert interactive["ended"]["succeeded"] >= 1
    assert found["limits"]["items"] > 0
    assert found["redis_bytes"] > 2**20


def test_watching_says_how_fast_it_goes_until_ctrl_c(served: tuple[Stack, Api], http: httpx.Client) -> None:
    line, env = command(served[1].url, "status", "--watch", "--json")
    # A parent in the background leaves SIGINT ignored.
    heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=heeding)
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["workers"][0]["now"] is None
        ok(embed_texts(http, [f"seen while watching {n}" for n in range(20)]))
        rates = [json.loads(process.stdout.readline())["workers"][0]["now"] for _ in range(2)]
        assert max(rates) > 0
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(ENDED) == 130
    finally:
        process.kill()
        process.wait()


def answers(http: httpx.Client) -> bool:
    with suppress(httpx.HTTPError):
        return http.get("/healthz").is_success
    return False


@pytest.fixture
def unserved(served: tuple[Stack, Api]) -> Iterator[Api]:
    """An API with a model that nobody serves, and a key."""
    api = served[0].api(models="emoji-mini,nobody=emoji-mini/none", api_keys=KEY)
    with api.client() as http:
        wait_for(lambda: answers(http), START, "the API")
    yield api
    api.stop()


def test_a_service_that_is_not_ready_says_why_and_wants_its_key(unserved: Api) -> None:
    done = run(unserved.url, "status", key=KEY)
    assert done.returncode == 1
    assert "not ready: No live worker serves model 'nobody'" in done.stdout
    assert json.loads(run(unserved.url, "status", "--json", key=KEY).stdout)["workers_of"]["nobody"] == {}
    for key in ("", "wrong-key"):
        for what in ("status", "jobs"):
            done = run(unserved.url, what, key=key)
            assert (done.returncode, done.stdout) == (1, "")
            assert f"{unserved.url} wants an API key, or another one: set CLIP_QUEUE_API_KEY" in done.stderr
            assert "wrong-key" not in done.stderr


def test_a_service_that_is_away_is_named() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for what in ("status", "jobs"):
        away = run(nowhere, what)
        assert (away.returncode, away.stdout) == (1, "")
        assert f"{nowhere} does not answer (ConnectError): start it with `clip-queue up`" in away.stderr
    assert "is not http://HOST" in run("nonsense", "status").stderr


def test_jobs_of_a_key(solo: Team) -> None:
    api = solo.another_api(api_keys=f"{KEY}, key-of-another-55f0")
    with api.client() as http:
        http.headers["Authorization"] = f"Bearer {KEY}"
        wanted, other = submit_texts(http, "one", "two"), submit_texts(http, "three")
        for job in (wanted, other):
            succeeded(http, job)
    done = run(api.url, "jobs", key=KEY)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if "embed_text" in line]
    assert [line[0] for line in lines] == [other, wanted], "newest first"
    assert lines[1][1:8] == ["embed_text", "emoji-mini", "succeeded", "background", "2", "of", "2"]
    listed = run(api.url, "jobs", "--json", "--state", "succeeded", "--limit", "1", key=KEY).stdout.splitlines()
    assert [json.loads(line)["id"] for line in listed] == [other]
    whole = json.loads(run(api.url, "jobs", wanted, key=KEY).stdout)
    assert len(whole["result"]["embeddings"]) == 2
    assert "no jobs that are cancelled" in run(api.url, "jobs", "--state", "cancelled", key=KEY).stdout
    assert run(api.url, "jobs", key="key-of-another-55f0").stdout == "no jobs\n"
    unknown = run(api.url, "jobs", wanted, key="key-of-another-55f0")
    assert unknown.returncode == 1
    assert "answers 404" in unknown.stderr
    assert "answers 422" in run(api.url, "jobs", "--state", "eaten", key=KEY).stderr
    api.stop()
