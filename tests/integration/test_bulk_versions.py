"""A dataset embedded while a worker of the last release stands beside today's, as in a rolling upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.plan_file import PART
from clip_queue.bulk.run.embed import embed
from clip_queue.bulk.run.report import Report
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import workers
from tests.harness import Service, Stack, stack
from tests.outputs import strays, table
from tests.release_archive import LAST, LAST_WORKER, unpack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

START = 300.0  # most seconds that a process takes to start on a loaded machine


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Service]]:
    """A worker of each release, and the older one."""
    folder = tmp_path_factory.mktemp("both")
    with stack(folder) as it:
        old, new = it.worker(LAST_WORKER, root=unpack(LAST, folder)), it.worker()
        it.ready(old, new, timeout=START)
        yield it, old


def run(it: Stack, folder: Path, rows: int, **options: object) -> Report:
    (source := folder / "in.txt").write_text("".join(f"thing {n}\n" for n in range(rows)))
    settings = Settings(precision="fp32", models=["emoji-mini"])
    report = embed(
        str(source),
        folder / "out",
        redis_url=it.redis_url,
        settings=settings,
        shard_size=1,
        **options,  # type: ignore[arg-type]
    )
    assert (report.status, report.rows, report.lost) == (0, rows, {})
    assert strays(folder / "out") == []
    return report


def test_both_say_which_manifests_they_read(both: tuple[Stack, Service]) -> None:
    it, old = both
    store = Store.connect(Settings(redis_url=it.redis_url))  # type: ignore[arg-type]
    there = store.execute(workers())
    store.close()
    assert sorted((w.pid == old.pid, w.manifests, w.work) for w in there) == [
        (False, 2, ["embed_dataset", "embed_shard"]),
        (True, 1, ["embed_shard"]),
    ]


def test_a_short_plan_is_done_by_both(both: tuple[Stack, Service], tmp_path: Path) -> None:
    it, old = both
    before = old.log.stat().st_size
    run(it, tmp_path, 40)
    assert [row["caption"] for row in table(tmp_path / "out")] == [f"thing {n}" for n in range(40)]
    assert b"shard failed" not in old.log.read_bytes()[before:]


def test_a_plan_that_the_older_one_refuses_is_done_by_the_other(both: tuple[Stack, Service], tmp_path: Path) -> None:
    it, old = both
    before = old.log.stat().st_size
    run(it, tmp_path, PART + 12)
    assert [row["caption"] for row in table(tmp_path / "out")] == [f"thing {n}" for n in range(PART + 12)]
    vectors = [np.load(path) for path in sorted((tmp_path / "out" / "text_emb").iterdir())]
    assert len(vectors) == PART + 12
    found = manifest.load(Output(str(tmp_path / "out")))
    assert found is not None
    assert found.plan.version == 2
    assert b"manifest.json" in old.log.read_bytes()[before:], "it was given some, and refused them by name"
