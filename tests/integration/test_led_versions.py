"""Runs that workers lead, beside a worker and an API of the last release: neither is harmed, nor harms them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import datasets
from tests.harness import Api, Service, Stack, stack, wait_for
from tests.jobs_api import ended, look
from tests.outputs import table
from tests.release_archive import LAST, LAST_API, LAST_HTTP, LAST_WORKER, unpack
from tests.wire import embed_texts, ok

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

START = 300.0  # most seconds that a process takes to start on a loaded machine
SEEN = 20  # passes of an old worker's reconciler, of a second each


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Service, Api, Api, Path]]:
    """An old worker alone, and an API of each release."""
    folder = tmp_path_factory.mktemp("led versions")
    places = tmp_path_factory.mktemp("places")
    root = unpack(LAST, folder)
    with stack(folder, bulk_sources=places / "in", bulk_outputs=places / "out") as it:
        old = it.worker(LAST_WORKER, root=root)
        apis = it.api(LAST_API, http=LAST_HTTP, root=root), it.api()
        it.ready(old, *apis, timeout=START)
        yield it, old, *apis, places


def test_an_old_worker_leaves_a_run_alone_and_a_new_one_leads_it(
    site: tuple[Stack, Service, Api, Api, Path],
) -> None:
    it, old, old_api, new_api, places = site
    source = datasets.folder(places / "in", 12)
    with old_api.client() as before, new_api.client() as now:
        body = {"task": "embed_dataset", "source": source.url, "output": str(places / "out" / "a"), "shard_size": 4}
        job_id = now.post("/jobs", json=body).json()["id"]
        # It serves as before, and looks after its own jobs, for as long as it likes.
        for _ in range(SEEN):
            ok(embed_texts(before, ["red heart"]))
        assert old.alive, old.tail()
        for http in (before, now):
            assert look(http, job_id)["state"] == "queued"
            assert look(http, job_id)["task"] == "embed_dataset"
            assert job_id in [job["id"] for job in http.get("/jobs").json()["jobs"]]

        new = it.worker()
        it.ready(new, timeout=START)
        document = wait_ended(now, job_id)
        assert document["state"] == "succeeded", document["error"]
        assert document["items"] == {"total": 16, "done": 12, "failed": 4}
        assert len(table(places / "out" / "a")) == 12
        assert look(before, job_id)["state"] == "succeeded"
        assert before.get(f"/jobs/{job_id}/result").json()["rows"] == 12
        assert old.alive, old.tail()
        assert "embed_shard" not in old.log.read_text()

        # An old API cancels one as well.
        new.stop()
        second = now.post("/jobs", json={**body, "output": str(places / "out" / "b")}).json()["id"]
        assert before.delete(f"/jobs/{second}").status_code == 200
        assert look(now, second)["state"] == "cancelled"
        third = now.post("/jobs", json={**body, "output": str(places / "out" / "b")})
        assert third.status_code == 202, "the output is free again"


def wait_ended(http: httpx.Client, job_id: str) -> dict[str, object]:
    wait_for(lambda: look(http, job_id)["state"] not in ("queued", "running"), START, "the run's end")
    return ended(http, job_id)
