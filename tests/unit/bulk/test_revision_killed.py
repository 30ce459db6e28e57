"""An update that is killed, and given again, or that meets a worker which slept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.markers import complete_markers
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.shard.handler import ShardHandler
from clip_queue.shared.job import Job, Kind, State
from clip_queue.shared.lane import Lane
from tests.unit.bulk.in_process import Worker
from tests.unit.bulk.revision_case import FILES, Case, lines

# Killed and given again


def test_killed_before_the_swap_the_output_is_what_it_was_and_the_same_call_goes_on(
    tmp_path: Path, worker: Worker
) -> None:
    case = Case(tmp_path, worker, FILES)
    before = case.files()
    case.write("a.txt", lines("a1", "xx", "a3", "a4"))
    case.write("b.txt", lines("b1"))

    def killed(output: Output, plan: manifest.RunPlan) -> Report:
        first = manifest.RunPlan(**{**vars(plan), "revision": manifest.Revision(plan.numbers[:1])})  # type: ignore[arg-type]
        case.run(output, first)
        manifest.save(output, plan)
        raise KeyboardInterrupt

    case.work = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        case.update()
    assert case.files() == before
    case.work = case.run  # type: ignore[method-assign]
    assert case.update().rows == 9
    assert case.sent == 1, "the shard that was complete is not done again"
    assert case.rows()[0] == ["a1", "xx", "a3"]


def test_a_source_that_changes_again_makes_a_new_revision(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    case.write("b.txt", lines("b1"))

    def killed(output: Output, plan: manifest.RunPlan) -> Report:
        raise KeyboardInterrupt

    case.work = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        case.update()
    case.write("b.txt", lines("b1", "b2"))
    case.work = case.run  # type: ignore[method-assign]
    assert case.update().rows == 10
    assert case.rows()[3] == ["b1", "b2"]
    assert not [path.name for path in Path(case.output.url).iterdir() if path.name.startswith(".")]


def test_killed_at_any_step_of_the_swap_the_next_call_completes_it(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, worker, FILES)
    case.write("a.txt", lines("a1", "xx", "a3", "yy"))
    case.write("b.txt", lines("b1", ""))
    (case.folder / "d.txt").unlink()
    left = -1  # steps until it is killed; none while it is no swap

    def watched(name: str) -> Any:
        original = getattr(Output, name)

        def step(self: Output, *args: Any) -> Any:
            nonlocal left
            left -= left > 0
            if not left:
                raise KeyboardInterrupt
            return original(self, *args)

        return step

    def work(output: Output, plan: manifest.RunPlan) -> Report:
        nonlocal left
        report = case.run(output, plan)
        left = 2
        return report

    kills = 0
    case.work = work  # type: ignore[method-assign]
    for name in ("move", "remove", "write", "erase"):
        monkeypatch.setattr(Output, name, watched(name))
    while True:
        try:
            report = case.update()
            break
        except KeyboardInterrupt:
            kills += 1
            left = 1 + kills
        for marker in complete_markers(case.output, case.plan):
            assert case.rows().get(marker["shard"], []) in WHOLE[marker["shard"]], "the old or the new, never half"
    assert kills > 5
    assert report.revised.startswith("the source is as it was")
    assert case.rows() == {0: ["a1", "xx", "a3"], 1: ["yy", "c1", "c2"], 3: ["b1"]}
    assert not [path.name for path in Path(case.output.url).iterdir() if path.name.startswith(".")]


WHOLE: dict[int, list[list[str]]] = {
    0: [["a1", "a2", "a3"], ["a1", "xx", "a3"]],
    1: [["a4", "c1", "c2"], ["yy", "c1", "c2"]],
    2: [["d1", "d2"], []],
    3: [["b1"]],
}


def test_a_worker_that_slept_through_an_update_writes_nothing(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    case.write("a.txt", lines("a1", "xx", "a3", "a4"))
    shard = Path(case.output.url) / "shards" / "shard_0.json"
    asleep = case.plan

    class Sleeper(ShardHandler):
        def _write(self, writer: ShardWriter, embedded: Any) -> None:
            super()._write(writer, embedded)
            shard.write_bytes(before)  # another worker has done it
            case.update()
            marker.write_bytes(shard.read_bytes())

    marker = tmp_path / "marker"
    before = shard.read_bytes()
    shard.unlink()
    job = Job(Kind.EMBED_SHARD, "m", 3, Lane.BULK, owner="open", ttl=60_000)
    inputs = ShardReference(case.output.url, asleep.id, 0).to_inputs()
    completion = Sleeper(job, inputs, worker.engine).run()
    assert completion is not None
    assert completion.state is State.FAILED
    assert shard.read_bytes() == marker.read_bytes()
    assert case.rows()[0] == ["a1", "xx", "a3"]
