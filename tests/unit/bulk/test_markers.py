"""Which shards are complete: told by listings, and by summaries of 128 markers, whatever has become of the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from clip_queue.bulk.output import manifest, markers, summaries
from clip_queue.bulk.output.layout import MANIFEST, PLAN_PARTS, Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.markers import Marker, complete_markers, marker_if_complete, publish, scan
from clip_queue.bulk.output.plan_file import PART
from clip_queue.bulk.output.summaries import MAX_OPEN, Summaries
from clip_queue.shared.models import ModelInfo
from clip_queue.sources.source import Source
from tests.counted_store import Counted

INFO = ModelInfo("m", "none", "f", 3, 8, (4, 4), "fp32")
SHARDS = 3 * PART + 5


def plan(shards: int = SHARDS, id: str = "p", **options: Any) -> RunPlan:
    return RunPlan(id, Source("/s", "text", images=True, texts=True), INFO, PlanOptions(**options), shards, None, 1.0)


def complete(output: Output, the_plan: RunPlan, shard: int, *, rows: int = 3) -> Marker:
    """A shard's files, small ones, and its marker."""
    names = output.names(shard, the_plan.shards)
    files = {}
    for kind in ("image", "text", "metadata"):
        put(output, names[kind], b"x" * (10 + shard % 7))
        files[names[kind]] = {"bytes": 10 + shard % 7, "blake2b": "0" * 32}
    marker = {"plan": the_plan.id, "shard": shard, "rows": rows, "failed": 0, "errors": {}, "files": files}
    marker["seconds"] = {"all": 1.0}
    put(output, names["shard"], orjson.dumps(marker))
    return marker


def put(output: Output, name: str, data: bytes) -> None:
    """A file, without the care for a machine that fails."""
    if output.local:
        (output.local / name).parent.mkdir(parents=True, exist_ok=True)
        (output.local / name).write_bytes(data)
    else:
        Counted.files[output.path(name)] = data


def run(output: Output, the_plan: RunPlan, *, but: tuple[int, ...] = ()) -> list[Marker]:
    """A run, some of its shards left out."""
    tally, done = Summaries(output, the_plan), []
    for shard in range(the_plan.shards):
        if shard not in but:
            done.append(complete(output, the_plan, shard))
            tally.add(done[-1])
    return done


@pytest.fixture(scope="module")
def long_run() -> Iterator[tuple[Output, RunPlan, list[Marker]]]:
    """In a store that counts; shard 200 is missing."""
    Counted.anew()
    output, the_plan = Output("counted://bucket/run"), plan()
    yield output, the_plan, run(output, the_plan, but=(200,))
    Counted.anew()


def asked(word: str) -> list[str]:
    return [what for what, _ in Counted.asked if what.startswith(word)]


def test_a_run_is_resumed_by_listings_and_not_by_asking_for_each_shard(
    long_run: tuple[Output, RunPlan, list[Marker]],
) -> None:
    output, the_plan, done = long_run
    Counted.asked.clear()
    found = list(scan(output, the_plan))
    assert [shard for shard, _ in found] == list(range(SHARDS))
    assert [marker for _, marker in found if marker] == done
    assert found[200] == (200, None)
    kinds = ("shards", "errors", "table", "metadata", "text_emb", "img_emb", "plan")
    assert sorted(asked("list")) == sorted(f"list bucket/run/{folder}" for folder in kinds)
    assert asked("info") == []
    single = {what.rpartition("_")[2] for what in asked("read") if "shard_" in what}
    part = [n for n in range(PART, 2 * PART) if n != 200]  # of which a shard is missing
    assert single == {f"{n}.json" for n in [*part, *range(3 * PART, SHARDS)]}
    assert len(asked("read")) == len(single) + 2, "and a summary for each of the others"


def test_a_summary_is_written_once_all_of_its_shards_are_complete(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan(PART + 1)
    done = run(output, the_plan)
    assert [path.name for path in (tmp_path / PLAN_PARTS).iterdir()] == ["complete_0.json"]
    assert list(summaries.read(output, the_plan, 0).values()) == done[:PART]
    short = Output(str(tmp_path / "short"))
    run(short, plan(PART - 1))
    assert not (tmp_path / "short" / PLAN_PARTS).exists(), "nor before a run has so many shards"


def test_a_summary_that_is_there_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, the_plan = Output(str(tmp_path)), plan(PART)
    done = run(output, the_plan)
    written: list[str] = []
    monkeypatch.setattr(Output, "write", lambda _, name, __: written.append(name))
    again = Summaries(output, the_plan)
    for marker in done:
        again.add(marker)
    assert written == []


def test_a_file_that_was_cut_or_is_gone_makes_its_shard_incomplete_whatever_a_summary_says(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan(PART)
    run(output, the_plan)
    names = [output.names(shard, PART) for shard in range(PART)]
    (tmp_path / names[3]["text"]).write_bytes(b"x")
    (tmp_path / names[4]["metadata"]).unlink()
    (tmp_path / names[5]["shard"]).unlink()
    found = dict(scan(output, the_plan))
    assert [shard for shard, marker in found.items() if marker is None] == [3, 4, 5]


def test_a_shard_that_was_done_again_counts_as_its_new_marker_says(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan(PART)
    run(output, the_plan)
    again = complete(output, the_plan, 7, rows=2)  # a marker of the same length, and files of the same sizes
    publish(output, the_plan, again, tmp_path / "marker")
    found = dict(scan(output, the_plan))
    assert [marker and marker["rows"] for marker in found.values()] == [2 if n == 7 else 3 for n in range(PART)]


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"plan": "p"}', b'{"plan": "q", "markers": []}', b"null"])
def test_a_summary_that_cannot_be_read_or_is_another_plan_s_is_not_used(tmp_path: Path, data: bytes) -> None:
    output, the_plan = Output(str(tmp_path)), plan(PART)
    done = run(output, the_plan)
    output.write(summaries.name(0), data)
    assert list(complete_markers(output, the_plan)) == done
    assert list(complete_markers(output, plan(PART, "another"))) == []


def test_a_listing_that_is_late_is_not_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, the_plan = Output(str(tmp_path)), plan(3)
    done = run(output, the_plan)
    sizes = Output.sizes

    def late(self: Output, folder: str) -> Iterator[tuple[str, int]]:
        return iter(()) if folder == "text_emb" else sizes(self, folder)

    monkeypatch.setattr(Output, "sizes", late)
    assert list(complete_markers(output, the_plan)) == done


def test_files_that_are_no_shard_s_are_passed_over(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan(12)
    done = run(output, the_plan)
    for name in (
        "shards/shard_99.json",
        "shards/shard_1.json",
        "shards/.x",
        "text_emb/a_b.npy",
        "plan/complete_x.json",
    ):
        output.write(name, b"{}")
    assert list(complete_markers(output, the_plan)) == done
    assert marker_if_complete(output, the_plan, 99) is None


def test_where_each_part_lacks_a_shard_no_more_than_a_few_are_held(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan(40 * PART)
    tally, most = Summaries(output, the_plan), 0
    for shard in range(the_plan.shards):
        if shard % PART:
            tally.add({"shard": shard})
        most = max(most, sum(map(len, tally._open.values())))
    assert most <= (MAX_OPEN + 1) * PART
    tally.add({"shard": 0})
    assert list((tmp_path).iterdir()) == []


def test_a_manifest_is_written_shard_by_shard(tmp_path: Path) -> None:
    output, the_plan = Output(str(tmp_path)), plan(3)
    manifest.save(output, the_plan)
    assert orjson.loads((tmp_path / MANIFEST).read_bytes())["result"] is None
    told = {"rows": 6, "errors": {"x": {"rows": 1, "examples": []}}, "left_out": {}}
    for number in range(3):
        shards = [{"shard": n, "files": {}} for n in range(number)]
        manifest.save(output, the_plan, told, iter(shards))
        found = manifest.load(output)
        assert found is not None
        assert found.result == {**told, "shards": shards}
        assert found.plan == the_plan


@pytest.mark.parametrize(
    ("shards", "planned", "options", "version"),
    [
        (PART, 1.0, {}, 1),
        (PART + 1, 1.0, {}, 2),  # 0.1.0 would look for its shards in the first file
        (PART + 1, 0.0, {}, 1),  # 0.1.0 has begun it
        (1, 1.0, {"layout": "table"}, 2),
    ],
)
def test_a_manifest_s_version_says_which_release_can_read_it(
    shards: int, planned: float, options: dict[str, Any], version: int
) -> None:
    the_plan = plan(shards, **options)
    assert RunPlan(**{**the_plan.__dict__, "planned": planned}).version == version


def test_a_marker_is_published_after_its_part_s_summary_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, nothing is told wrong."""
    output, the_plan = Output(str(tmp_path)), plan(PART)
    run(output, the_plan)

    def fail(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(Output, "publish", fail)
    with pytest.raises(OSError, match="killed"):
        markers.publish(output, the_plan, {"shard": 5}, tmp_path / "marker")
    assert summaries.listed(output) == set()
