"""``limit`` and ``sample``: which rows are planned and embedded, in every format, and again after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue import dry_run
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import AnotherRun, SourceChanged
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.run import first_look
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_same, check_unchanged
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.source import Piece, Row, Shard, Source, SourceError
from tests import datasets
from tests.outputs import table
from tests.unit.bulk.in_process import INFO, Worker

SETTINGS = Settings(models=["emoji-mini"])
COUNT = 24


def planned(url: str, output: Output, **options: Any) -> RunPlan:
    planner = Planner(output, EmbedRequest.of(url, options), SETTINGS, ignore, lambda: False)
    plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=True)
    manifest.save(output, plan)
    return plan


def rows(output: Output, plan: RunPlan) -> list[tuple[Any, ...]]:
    """What the shards of a plan read, without the rows that a limit cuts off."""
    file, found = PlanFile(output), []
    for number in range(plan.shards):
        shard = file.shard(number)
        there = list(registry.read(plan.source, shard.pieces, SETTINGS))
        found += [(row.columns["image_path"], row.text) for row in there[: shard.rows]]
        assert shard.rows is None or len(there) >= shard.rows
    return found


@pytest.fixture(params=datasets.MAKE)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return datasets.MAKE[request.param](tmp_path, COUNT).url


def everything(url: str, tmp_path: Path) -> list[tuple[Any, ...]]:
    output = Output(str(tmp_path / "all"))
    return rows(output, planned(url, output))


@pytest.mark.parametrize(("limit", "shard_size"), [(1, None), (7, 5), (13, None), (1000, 5)])
def test_a_limit_is_the_first_rows(source: str, tmp_path: Path, limit: int, shard_size: int | None) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output, limit=limit, shard_size=shard_size)
    expected = everything(source, tmp_path)[:limit]
    assert rows(output, plan) == expected
    assert plan.rows == len(expected)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_sample_is_drawn_by_its_seed(source: str, tmp_path: Path, share: float) -> None:
    found = []
    for name, seed in (("a", 0), ("b", None), ("c", 1), ("d", 2)):
        output = Output(str(tmp_path / name))
        found.append(rows(output, planned(source, output, sample=share, seed=seed, shard_size=6)))
    there = everything(source, tmp_path)
    for some in found:
        places = [there.index(row) for row in some]
        assert places == sorted(places), "in the source's order"
        assert (some == there) if share == 1 else 0 < len(some) < len(there)
    assert found[0] == found[1]
    assert share == 1 or any(some != found[0] for some in found[2:])


def test_a_sample_of_hardly_anything_is_one_row(source: str, tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output, sample=1e-12)
    assert plan.shards == 1
    assert len(rows(output, plan)) == 1 or plan.source.format == "webdataset"


def test_of_a_sample_the_first_rows(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"line {n}\n" for n in range(200)))
    both, sample = Output(str(tmp_path / "both")), Output(str(tmp_path / "sample"))
    asked = rows(both, planned(str(tmp_path / "in.txt"), both, sample=0.2, limit=10))
    assert asked == rows(sample, planned(str(tmp_path / "in.txt"), sample, sample=0.2))[:10]


def test_rows_that_follow_each_other_are_one_piece(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": [f"c {n}" for n in range(5000)]}), tmp_path / "in.parquet", row_group_size=300)
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": f"c {n}"}) for n in range(5000)))
    for name in ("in.parquet", "in.jsonl"):
        output = Output(str(tmp_path / f"out {name}"))
        plan = planned(str(tmp_path / name), output, limit=4500, shard_size=1000)
        assert [len(PlanFile(output).shard(n).pieces) for n in range(plan.shards)] == [1] * 5
        assert len(rows(output, plan)) == 4500


@pytest.mark.parametrize("limit", [None, 1, 4, 6])
def test_a_row_of_a_table_may_be_several(monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    def plan_shards(source: Any, shard_size: int, settings: Any) -> Any:
        assert shard_size == 1
        return source, (Shard([Piece(b"t", n, n + 1, 9)], None) for n in range(4))

    def read(source: Any, pieces: Any, settings: Any) -> Any:
        return iter([Row({})] * sum(2 * (piece.stop - piece.start) for piece in pieces))

    monkeypatch.setattr(registry, "plan_shards", plan_shards)
    monkeypatch.setattr(registry, "read", read)
    options = PlanOptions(limit=limit, sample=1.0)
    shards = list(first_look.plan_shards(Source("t", "parquet"), options, 3, SETTINGS)[1])
    expected = {
        None: [Shard([Piece(b"t", 0, 3, 9)], None), Shard([Piece(b"t", 3, 4, 9)], None)],
        1: [Shard([Piece(b"t", 0, 1, 9)], 1)],
        4: [Shard([Piece(b"t", 0, 2, 9)], 4)],
        6: [Shard([Piece(b"t", 0, 3, 9)], 6)],
    }
    assert shards == expected[limit]


def test_a_dry_run_counts_them(source: str) -> None:
    assert dry_run(source, limit=7).rows == 7
    assert dry_run(source, limit=7, sample=1.0, shard_size=2).rows == 7


def test_a_limit_reads_no_further_than_it_has_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = datasets.tars(tmp_path / "in", COUNT).url
    read: list[bytes] = []
    real = registry.read

    def spy(source: Any, pieces: Any, settings: Any) -> Any:
        read.extend(piece.path for piece in pieces)
        return real(source, pieces, settings)

    monkeypatch.setattr(registry, "read", spy)
    assert dry_run(url, limit=7, shard_size=10).rows == 7
    assert [Path(path.decode()).name for path in read] == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0: use 1 to"),
        ({"sample": 0.0}, "sample is 0.0: use a share"),
        ({"sample": 1.5}, "sample is 1.5: use a share"),
        ({"sample": float("nan")}, "sample is nan: use a share"),
        ({"seed": 1}, "seed is of a sample, and none is asked for"),
        ({"texts": False, "long_texts": "cut"}, "texts are not wanted: leave one of the two out"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: Any, message: str) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(BadInput, match=message):
        dry_run(str(tmp_path / "in.txt"), **options)


def test_cutting_texts_is_refused_where_there_are_none(tmp_path: Path) -> None:
    url, cut = datasets.folder(tmp_path / "in", 3, captions=False).url, {"long_texts": "cut"}
    with pytest.raises(SourceError, match="there are no texts to embed: leave long_texts out"):
        dry_run(url, **cut)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="there are no texts to embed"):
        planned(url, Output(str(tmp_path / "out")), **cut)
    assert dry_run(url, long_texts="fail").rows, "as it is by itself"


# The run


def test_a_run_embeds_those_rows_alone_and_is_resumed_as_it_was(tmp_path: Path, worker: Worker) -> None:
    url = datasets.tars(tmp_path / "in", COUNT).url
    output = Output(str(tmp_path / "out"))
    plan = planned(url, output, limit=13, images=False)
    for missing in (None, 2):
        if missing is not None:
            Path(output.path(output.names(missing, plan.shards)["shard"])).unlink()
        one: Any = Worker(worker.engine)
        more: Any = {"retry": RetryPolicy(), "show": ignore, "should_stop": lambda: False}
        report = run_plan(SETTINGS, output, plan, one.store, **more)
        assert (report.rows, report.failed, report.finished) == (13, 0, True)
        assert len(table(tmp_path / "out")) == 13
    found = manifest.load(output)
    assert found is not None
    assert found.plan.options.limit == 13


def test_the_manifest_says_so_and_another_look_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"line {n}\n" for n in range(50)))
    output = Output(str(tmp_path / "out"))
    plan = planned(str(tmp_path / "in.txt"), output, sample=0.5, seed=7)
    raw = orjson.loads(output.read(manifest.MANIFEST) or b"")
    assert raw["version"] == 2
    assert {k: raw["plan"]["options"].get(k) for k in ("sample", "seed", "limit")} == {
        "sample": 0.5,
        "seed": 7,
        "limit": None,
    }
    found = manifest.load(output)
    assert found is not None
    assert found.plan.options == plan.options
    for given, message in (
        ({"sample": 0.6}, "sample is 0.5 there, 0.6 here"),
        ({"limit": 3}, "limit is None there, 3 here"),
        ({"sample": 0.5, "seed": 8}, "seed is 7 there, 8 here"),
    ):
        asked = EmbedRequest.of(str(tmp_path / "in.txt"), given).plan_options(plan.options)  # type: ignore[arg-type]
        with pytest.raises(AnotherRun, match=message):
            check_same(plan, plan.source, asked, "m")
    check_same(plan, plan.source, plan.options, "m")
    assert PlanOptions().is_first_look is False


def test_files_that_were_left_out_are_no_change_of_the_source(tmp_path: Path) -> None:
    url = datasets.tars(tmp_path / "in", COUNT).url
    output = Output(str(tmp_path / "out"))
    plan = planned(url, output, limit=7)
    check_unchanged(output, plan)
    (tmp_path / "in" / "00000.tar").unlink()
    with pytest.raises(SourceChanged, match=r"gone \(00000.tar\)"):
        check_unchanged(output, plan)
