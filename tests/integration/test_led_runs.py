"""A dataset as a job over HTTP: two workers lead it between them, whoever is killed, and nothing leads outside."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from clip_queue.bulk.run import led_handler
from tests import datasets
from tests.bulk_command import Embed, count_complete, manifest
from tests.bulk_team import ATTEMPTS, LOST, PASS, ROWS, all_there, run
from tests.harness import Service, stack, wait_for
from tests.jobs_api import look
from tests.outputs import checksums, strays, table
from tests.team import Team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENDED = 400.0  # seconds that a run may take on a loaded machine
FINAL = ("succeeded", "failed", "cancelled", "expired")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``in`` may be read, ``out`` may be written below."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "out").mkdir()
    return folder


@pytest.fixture(scope="module")
def source(places: Path) -> datasets.Dataset:
    return datasets.folder(places / "in" / "folder", ROWS)


@pytest.fixture(scope="module")
def led_stack(tmp_path_factory: pytest.TempPathFactory, places: Path, source: datasets.Dataset) -> Iterator[Team]:
    settings: dict[str, Any] = {
        "lease": 2,
        "drain_timeout": 20,
        "max_attempts": ATTEMPTS,
        "max_led_runs": 1,
        "bulk_sources": places / "in",
        "bulk_outputs": places / "out",
        "api_keys": "one,two",
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        stack(tmp_path_factory.mktemp("led"), **settings) as it,
    ):
        patch.setenv("OMP_NUM_THREADS", "1")  # bytes are the same for the same number of threads
        # Every write is on disk before it is answered, so that even kill -9 may not lose one.
        it.valkey.client().config_set("appendfsync", "always")
        it.valkey.command += ["--appendfsync", "always"]
        yield Team.start(it, 2)


@pytest.fixture
def team(led_stack: Team) -> Team:
    led_stack.heal()
    led_stack.http.headers["Authorization"] = "Bearer one"
    return led_stack


@pytest.fixture(scope="module")
def whole(led_stack: Team, source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of a run that a command leads, and that nothing happens to."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(led_stack, source.url, output).status == 3
    return checksums(output)


def submit(http: httpx.Client, source: str, output: Path, **more: object) -> str:
    body = {"task": "embed_dataset", "source": source, "output": str(output), "shard_size": 5, "batch_size": 2, **more}
    response = http.post("/jobs", json=body)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def ended(http: httpx.Client, job_id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    document: dict[str, Any] = {}

    def over() -> bool:
        document.update(http.get(f"/jobs/{job_id}", params={"wait": 10}, headers=headers).json())
        return document["state"] in FINAL

    wait_for(over, ENDED, "the end of the run")
    return document


def leader(team: Team, job_id: str) -> Service:
    """The worker that leads a run now."""
    store = team.store()
    try:
        found: list[Service] = []

        def is_led() -> bool:
            name = (store.client.hget(f"cq:job:{job_id}", "worker") or b"").decode()
            found[:] = [worker for worker in team.workers if worker.alive and f"-{worker.pid}-" in name]
            return bool(found)

        wait_for(is_led, ENDED, "a leader")
        return found[0]
    finally:
        store.close()


def helpers(worker: Service) -> list[psutil.Process]:
    """The processes in which a worker leads runs."""
    found = []
    for child in psutil.Process(worker.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended a moment ago
            if led_handler.COMMAND[-1] in child.cmdline():
                found.append(child)
    return found


def in_the_middle(team: Team, job_id: str, output: Path, more: int = 2) -> None:
    wait_for(lambda: count_complete(output) >= more or look(team.http, job_id)["state"] in FINAL, ENDED, "shards")
    assert look(team.http, job_id)["state"] == "running"


def test_a_run_is_submitted_watched_and_its_report_is_its_result(
    team: Team, source: datasets.Dataset, whole: dict[str, str], places: Path
) -> None:
    output = places / "out" / "plain"
    job_id = submit(team.http, source.url, output)
    with team.http.stream("GET", f"/jobs/{job_id}/events", timeout=ENDED) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [events[0]["id"], events[-1]["state"]] == [job_id, "succeeded"]
    assert any("shards" in event["progress"] for event in events if event["progress"])
    done = [event["items"]["done"] for event in events]
    assert done == sorted(done)
    document = look(team.http, job_id)
    assert document["items"] == {"total": 44, "done": 40, "failed": 4}
    assert document["attempts"] == 1
    report = team.http.get(f"/jobs/{job_id}/result").json()
    assert (report["rows"], report["failed"], report["complete"], report["lost"]) == (40, 4, 9, {})
    assert report["errors"]["bad_image"]["rows"] == 4
    assert report["output"] == str(output)
    all_there(output, source, whole)
    # One key never sees another's.
    other = {"Authorization": "Bearer two"}
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/result", f"/jobs/{job_id}/events"):
        assert team.http.get(path, headers=other).status_code == 404
    assert job_id not in team.http.get("/jobs", headers=other).text
    theirs = team.http.post(
        "/jobs", json={"task": "embed_dataset", "source": source.url, "output": str(output)}, headers=other
    )
    document = ended(team.http, theirs.json()["id"], other)
    assert (document["state"], document["error"]["code"]) == ("failed", "foreign_output")
    assert source.url not in document["error"]["message"]
    # Finished: the same again reports at once.
    again = ended(team.http, submit(team.http, source.url, output))
    assert (again["state"], again["result"]["rows"]) == ("succeeded", 40)


def test_a_leader_that_is_killed_is_replaced_and_the_bytes_are_the_same(
    team: Team, source: datasets.Dataset, whole: dict[str, str], places: Path
) -> None:
    output = places / "out" / "killed"
    team.faults.delay(PASS)
    job_id = submit(team.http, source.url, output)
    in_the_middle(team, job_id, output)
    first = leader(team, job_id)
    beside = helpers(first)
    assert beside
    first.kill()
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in beside), LOST, "its end")
    wait_for(lambda: leader(team, job_id) is not first, LOST, "another leader")
    team.faults.clear()
    document = ended(team.http, job_id)
    assert document["state"] == "succeeded", document["error"]
    assert document["items"]["done"] == 40
    assert document["result"]["resumed"] >= 5
    all_there(output, source, whole)


def test_requests_are_answered_by_the_worker_that_leads(team: Team, source: datasets.Dataset, places: Path) -> None:
    output = places / "out" / "beside"
    team.faults.delay(PASS)
    job_id = submit(team.http, source.url, output)
    in_the_middle(team, job_id, output, 1)
    first = leader(team, job_id)
    for worker in team.workers:
        if worker is not first:
            worker.kill()
    team.faults.clear()
    assert team.http.post("/clip/embed_text", json={"text": "red heart"}).status_code == 200
    team.http.delete(f"/jobs/{job_id}")


def test_a_leader_that_is_told_to_end_hands_over_at_once(
    team: Team, source: datasets.Dataset, whole: dict[str, str], places: Path
) -> None:
    output = places / "out" / "handed over"
    team.faults.delay(PASS)
    job_id = submit(team.http, source.url, output)
    in_the_middle(team, job_id, output)
    first = leader(team, job_id)
    first.signal(signal.SIGTERM)
    wait_for(lambda: leader(team, job_id) is not first, LOST, "another leader")
    assert look(team.http, job_id)["attempts"] == 1, "what was given back is no attempt"
    team.faults.clear()
    assert ended(team.http, job_id)["state"] == "succeeded"
    all_there(output, source, whole)
    wait_for(lambda: not first.alive, LOST, "the end of the worker that was told to")


def test_a_process_beside_that_is_killed_is_started_again(
    team: Team, source: datasets.Dataset, whole: dict[str, str], places: Path
) -> None:
    output = places / "out" / "beside killed"
    team.faults.delay(PASS)
    job_id = submit(team.http, source.url, output)
    in_the_middle(team, job_id, output)
    first = leader(team, job_id)
    for process in helpers(first):
        process.kill()
    wait_for(lambda: helpers(first), LOST, "another process")
    team.faults.clear()
    assert ended(team.http, job_id)["state"] == "succeeded"
    all_there(output, source, whole)


def test_a_run_that_is_deleted_stops_soon_and_the_same_submission_goes_on(
    team: Team, source: datasets.Dataset, whole: dict[str, str], places: Path
) -> None:
    output = places / "out" / "deleted"
    team.faults.delay(PASS)
    job_id = submit(team.http, source.url, output)
    in_the_middle(team, job_id, output)
    first = leader(team, job_id)
    assert team.http.delete(f"/jobs/{job_id}").status_code == 200
    wait_for(lambda: not helpers(first), LOST, "the end of the process beside")
    passes = len(team.faults.passes())
    wait_for(lambda: not unfinished(team), LOST, "its shards' end")
    assert len(team.faults.passes()) <= passes + 8
    there = count_complete(output)
    assert 0 < there < 9
    assert look(team.http, job_id)["state"] == "cancelled"
    assert team.http.get(f"/jobs/{job_id}/result").status_code == 409
    team.faults.clear()
    document = ended(team.http, submit(team.http, source.url, output))
    assert document["state"] == "succeeded", document["error"]
    assert document["result"]["resumed"] >= 5 * there - 4
    all_there(output, source, whole)


def unfinished(team: Team) -> list[bytes]:
    client = team.stack.valkey.client()
    return [job for key in client.keys("cq:open:*") for job in client.zrange(key, 0, -1)]


def test_more_runs_than_are_led_at_once_wait(team: Team, source: datasets.Dataset, places: Path) -> None:
    team.faults.delay(PASS)
    jobs = [submit(team.http, source.url, places / "out" / f"many {i}") for i in range(3)]
    wait_for(lambda: [look(team.http, job)["state"] for job in jobs].count("running") == 2, LOST, "two leaders")
    assert [look(team.http, job)["state"] for job in jobs].count("queued") == 1
    team.faults.clear()
    assert {ended(team.http, job)["state"] for job in jobs} == {"succeeded"}


# What is not allowed


def test_rows_that_name_files_outside_fail_and_links_end_the_run(team: Team, places: Path) -> None:
    (places / "secret").mkdir(exist_ok=True)
    shutil.copy(places / "in" / "folder" / "000 é.jpg", places / "secret" / "secret.jpg")
    tables = places / "in" / "tables"
    tables.mkdir()
    secret = places / "secret" / "secret.jpg"
    shutil.copy(secret, tables / "good.jpg")
    names = [str(secret), "../../secret/secret.jpg", f"file://{secret}", "good.jpg", "memory://x.jpg"]
    (tables / "t.csv").write_text("image\n" + "\n".join(names) + "\n")
    output = places / "out" / "tables"
    document = ended(team.http, submit(team.http, str(tables / "t.csv"), output))
    assert (document["state"], document["items"]) == ("succeeded", {"total": 5, "done": 1, "failed": 4})
    assert [row["image_path"] for row in table(output)] == ["good.jpg"]
    assert all("bulk_sources" in row["error"] for row in table(output, "errors"))

    linked = places / "in" / "linked"
    linked.mkdir()
    shutil.copy(secret, linked / "good.jpg")
    (linked / "bad.jpg").symlink_to(secret)
    document = ended(team.http, submit(team.http, str(linked), places / "out" / "linked"))
    assert document["state"] == "failed"
    assert "bad.jpg leads out of the places that may be read (setting bulk_sources)" in document["error"]["message"]
    assert not (places / "out" / "linked" / "manifest.json").exists()
    (linked / "bad.jpg").unlink()
    assert ended(team.http, submit(team.http, str(linked), places / "out" / "linked"))["state"] == "succeeded"


def test_what_the_leader_cannot_read_fails_the_run_with_its_reason(team: Team, places: Path) -> None:
    for name, says in (("missing", "does not exist"), ("missing/*.csv", "nothing matches")):
        document = ended(team.http, submit(team.http, str(places / "in" / name), places / "out" / "none"))
        assert document["state"] == "failed"
        assert says in document["error"]["message"]
    foreign = places / "out" / "foreign"
    foreign.mkdir()
    (foreign / "theirs").touch()
    document = ended(team.http, submit(team.http, str(places / "in" / "folder"), foreign))
    assert (document["state"], document["error"]["code"]) == ("failed", "foreign_output")
    assert [path.name for path in foreign.iterdir() if not path.name.startswith(".")] == ["theirs"]


# The command that does not wait


def test_the_command_gives_a_run_to_the_workers_and_ends(
    team: Team, source: datasets.Dataset, whole: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"  # the settings bind what comes over HTTP
    options = ("--shard-size", 5, "--batch-size", 2, "--detach")
    command = Embed(tmp_path, source.url, output, *options, env=team.stack.env())
    command.start()
    assert command.ended() == 0, command.said
    job_id = next(word.rstrip(":") for word in command.said.split() if len(word.rstrip(":")) == 32)
    assert f"-X DELETE http://…/jobs/{job_id}" in command.said
    document = ended(team.http, job_id)
    assert document["state"] == "succeeded", document["error"]
    all_there(output, source, whole)
    assert manifest(output)["result"]["rows"] == 40
    assert strays(output) == []
