"""A run in parts: commands with workers of their own, as on machines that share nothing but the output."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import save
from clip_queue.bulk.output.output_lease import OutputLease
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.part import Part, turn_to_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.workers import locked
from clip_queue.shared.settings import Settings
from tests import datasets
from tests.bulk_command import Embed, manifest
from tests.harness import wait_for
from tests.outputs import checksums, strays, table
from tests.s3_store import S3, access, anew
from tests.unit.bulk.in_process import INFO, Worker, engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 60
OPTIONS = ("--shard-size", 6, "--batch-size", 3, "--workers", 1)
STARTED = 400.0  # seconds that two embedded stacks may take, side by side on a loaded machine


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return datasets.folder(tmp_path_factory.mktemp("parts") / "in", ROWS)


def embed(folder: Path, source: str, output: Path, *options: object, name: str = "embed", **env: str) -> Embed:
    (temporary := folder / f"tmp {name}").mkdir(exist_ok=True)
    return Embed(folder, source, output, *OPTIONS, *options, name=name, env={"TMPDIR": str(temporary), **env})


def test_parts_begun_together_and_one_killed_make_the_bytes_of_one_run(
    source: datasets.Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    parts = [embed(tmp_path, source.url, output, "--part", f"{n}/2", name=f"part {n}") for n in (1, 2)]
    try:
        for part in parts:
            part.start()
        # The one that waited for the plan of the other dies once it is at work; or before, if it is slower.
        wait_for(lambda: (output / "manifest.json").exists() or not all(p.alive for p in parts), STARTED, parts[0].said)
        parts[1].kill()
        twin = embed(tmp_path, source.url, output, "--part", "1/2", name="twin").start()
        assert parts[0].ended(STARTED) in (0, 3), parts[0].said
        assert "of part 1/2 embedded" in parts[0].said
        assert "part 2/2 is missing still, with " in parts[0].said
        assert manifest(output)["result"] is None
        assert twin.ended(STARTED) in (0, 1, 3), twin.said  # it was refused, or came late enough to find all done
        parts[1].start()
        assert parts[1].ended(STARTED) in (0, 3), parts[1].said
        assert "all parts are there: the output is complete" in parts[1].said
    finally:
        for part in parts:
            part.kill()
    assert manifest(output)["result"]["rows"] == len(source.good)
    assert strays(output) == []
    whole = embed(tmp_path, source.url, tmp_path / "whole", name="whole").start()
    assert whole.ended(STARTED) in (0, 3), whole.said
    assert checksums(output) == checksums(tmp_path / "whole")


# In a store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    it = S3(tmp_path).start()
    it.client.create_bucket(Bucket="data")
    for name, value in access(it.url).items():
        monkeypatch.setenv(name, value)
    anew()
    yield it
    it.kill()
    anew()


def test_on_s3_one_of_many_is_the_first(store: S3) -> None:
    output = Output("s3://data/out")
    leases = [OutputLease(output, "plan") for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(OutputLease.take, leases)) == [False] * 7 + [True]
    finally:
        for lease in leases:
            lease.release()
    assert store.keys("data", "out/.leases") == []


def test_parts_share_an_output_on_s3(store: S3, tmp_path: Path) -> None:
    """Here in threads of one process, with workers that compute nothing: it is about who writes what."""
    (tmp_path / "in.txt").write_text("\n".join(f"row {n}" for n in range(ROWS)) + "\n")
    settings, request = Settings(), EmbedRequest.of(tmp_path / "in.txt", {"shard_size": 4, "batch_size": 2})
    output = Output("s3://data/parts")

    def command(number: int) -> Report:
        with engine(settings) as it, locked(output, shared=True):
            with turn_to_plan(output, ignore, lambda: False) as begun:
                if begun is None:
                    planner = Planner(output, request, settings, ignore, lambda: False)
                    plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=False)
                    save(output, plan)
                else:
                    plan = begun.plan
            worker = Worker(it)
            more: Any = {"retry": RetryPolicy(), "show": ignore, "should_stop": lambda: False}
            return run_plan(settings, output, plan, worker.store, part=Part(number, 3), **more)

    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(command, (1, 2, 3)))
    assert sorted(report.rows for report in reports) == [20, 20, 20]
    assert [] in [report.missing for report in reports]
    there = store.download("data", "parts", tmp_path / "there")
    assert manifest(there)["result"]["rows"] == ROWS
    assert [row["caption"] for row in table(there)] == [f"row {n}" for n in range(ROWS)]
    assert store.keys("data", "parts/.leases") == []
