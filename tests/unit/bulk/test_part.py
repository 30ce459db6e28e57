"""A run in parts: which shards are whose, who plans, and who finishes the output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clip_queue import embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.output_lease import OutputLease
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.part import WHOLE, Part, at_work, turn_to_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.workers import NotStarted, locked
from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from tests.harness import wait_for
from tests.outputs import strays, table
from tests.unit.bulk.in_process import INFO, Worker

SETTINGS = Settings(models=["emoji-mini"])
TEXTS = [f"row {n}" for n in range(11)]  # in shards of two: six of them
SAME: Any = {"model": "m=none/none", "shard_size": 2, "settings": SETTINGS}


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    return str(tmp_path / "in.txt")


@pytest.fixture
def output(source: str, tmp_path: Path) -> Output:
    """An output that is planned."""
    output = Output(str(tmp_path / "out"))
    planner = Planner(output, EmbedRequest.of(source, {"shard_size": 2}), SETTINGS, ignore, lambda: False)
    manifest.save(output, planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=False))
    return output


def run(worker: Worker, output: Output, part: str, **options: Any) -> Report:
    """A command for a part, with workers of its own."""
    found = manifest.load(output)
    assert found is not None
    more: Any = {"retry": RetryPolicy(), "show": ignore, "should_stop": lambda: False, **options}
    own = Worker(worker.engine)
    with locked(output, shared=True):
        return run_plan(SETTINGS, output, found.plan, own.store, part=Part.parse(part), **more)


def result(output: Output) -> dict[str, Any]:
    """What the manifest says of a run that has finished; nothing before."""
    found = manifest.load(output)
    assert found
    return found.result or {}


# Which shards


@pytest.mark.parametrize(("given", "part"), [("3/16", (3, 16)), ((16, 16), (16, 16)), (" 1 / 1 ", (1, 1))])
def test_a_part_is_given_as_text_or_as_two_numbers(given: Any, part: tuple[int, int]) -> None:
    assert Part.parse(given) == Part(*part)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0/16", "there is no part 0/16: parts are counted from 1, 1/16 to 16/16"),
        ("17/16", "there is no part 17/16: parts are counted from 1, 1/16 to 16/16"),
        ("1/0", "there is no part 1/0: parts are counted from 1, 1/16 to 16/16, where there are 16"),
        ((0, 2), "there is no part 0/2: parts are counted from 1, 1/2 to 2/2"),
        ("a/b", "part 'a/b' is not understood: use K/N for the Kth of N parts, as 3/16"),
        ("3", "part '3' is not understood: use K/N for the Kth of N parts, as 3/16"),
        ("-1/4", "part '-1/4' is not understood: use K/N for the Kth of N parts, as 3/16"),
        ("٣/16", "part '٣/16' is not understood: use K/N for the Kth of N parts, as 3/16"),
        ((1, 2, 3), "part '1/2/3' is not understood: use K/N for the Kth of N parts, as 3/16"),
    ],
)
def test_what_is_no_part_is_refused_with_what_is_right(source: str, tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        embed(source, tmp_path / "out", part=given)
    assert refused.value.message == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("shards", "of"), [(10, 3), (3, 10), (1, 1), (0, 4), (16, 16)])
def test_every_shard_belongs_to_one_part(shards: int, of: int) -> None:
    parts = [Part(number, of).shards(shards) for number in range(1, of + 1)]
    assert sorted(shard for part in parts for shard in part) == list(range(shards))


def test_a_redis_shares_the_whole_among_its_workers(source: str, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"part 1/2 is for a command with workers of its own, .*: give either the part or the Redis"
    ):
        embed(source, tmp_path / "out", part="1/2", redis_url="redis://127.0.0.1:1/0")


# What each does, and who finishes


def test_parts_make_one_output_and_the_last_one_finishes_it(output: Output, tmp_path: Path, worker: Worker) -> None:
    shown: list[Progress] = []
    reports = [run(worker, output, part, show=shown.append) for part in ("2/3", "3/3")]
    assert [(report.rows, report.shards, report.complete, report.status) for report in reports] == [
        (4, 2, 2, 0),
        (3, 2, 2, 0),
    ]
    assert (reports[0].part, reports[0].missing, reports[0].missing_shards) == ("2/3", ["1/3", "3/3"], 4)
    assert (reports[1].missing, reports[1].missing_shards) == (["1/3"], 2)
    assert shown[0].total == 4
    assert result(output) == {}
    last = run(worker, output, "1/3")
    assert (last.rows, last.finished, last.missing) == (4, True, [])
    assert (result(output)["rows"], len(result(output)["shards"])) == (11, 6)
    assert [row["caption"] for row in table(tmp_path / "out")] == TEXTS
    assert strays(tmp_path / "out") == []


def test_another_number_of_parts_goes_on_with_what_is_left(output: Output, worker: Worker) -> None:
    assert run(worker, output, "3/3").missing == ["1/3", "2/3"]
    assert run(worker, output, "2/2").missing == ["1/2"]
    last = run(worker, output, "1/1")
    assert (last.rows, last.resumed, last.part, last.finished) == (11, 7, "", True)


def test_a_part_that_is_given_again_does_nothing_twice(source: str, output: Output, worker: Worker) -> None:
    run(worker, output, "1/2")
    report = embed(source, output.url, part=(1, 2), **SAME)
    assert (report.part, report.rows, report.missing) == ("1/2", 6, ["2/2"])


def test_the_result_that_the_last_part_was_killed_over_is_written_by_any_that_is_given_again(
    source: str, output: Output, worker: Worker, tmp_path: Path
) -> None:
    for part in ("1/2", "2/2"):
        run(worker, output, part)
    found = manifest.load(output)
    assert found
    manifest.save(output, found.plan)
    report = embed(source, output.url, part="1/2", **SAME)
    assert (report.rows, report.missing) == (6, [])
    assert result(output)["rows"] == 11
    assert strays(tmp_path / "out") == []
    assert embed(source, output.url, **SAME).rows == 11


def test_two_that_end_at_the_same_moment_both_end_well(output: Output, worker: Worker, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(lambda n: run(worker, output, f"{n}/6"), range(1, 7)))
    assert [report.status for report in reports] == [0] * 6
    assert result(output)
    assert [row["caption"] for row in table(tmp_path / "out")] == TEXTS
    assert strays(tmp_path / "out") == []


def test_parts_without_shards_have_nothing_to_do(source: str, output: Output) -> None:
    report = embed(source, output.url, part="9/9", **SAME)
    assert (report.rows, report.shards, report.status) == (0, 0, 0)
    assert report.missing == [f"{n}/9" for n in range(1, 7)]


# Who is at work


def test_one_command_a_part_at_a_time(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_queue.bulk.output.output_lease.BEAT", 0.05)
    part = Part(1, 2)
    with at_work(output, part, ignore, lambda: False) as check:
        check()
        with at_work(output, Part(2, 2), ignore, lambda: False):
            pass
    said: list[str] = []
    monkeypatch.setattr("clip_queue.bulk.run.part.OutputLease", lambda *given: OutputLease(*given, beat=0.05))
    with at_work(output, part, ignore, lambda: False) as check:
        with (
            pytest.raises(
                OutputError, match=r"another command, on .*, is at work at part 1/2 of .*: wait for it, or st"
            ),
            at_work(output, part, said.append, lambda: False),
        ):
            pass
        assert len(said) == 1
        output.write(".leases/part-1-of-2.2", b"{}")
        wait_for(lambda: is_refused(check), 20, "what the other has taken over is left to it")


def is_refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except OutputError as error:
        return "another one does part 1/2 now" in error.message
    return False


def test_a_run_of_the_whole_and_one_of_a_part_exclude_each_other(output: Output) -> None:
    busy = pytest.raises(OutputError, match="another run is at work in")
    with locked(output, shared=True), locked(output, shared=True), busy, locked(output):
        pass
    with locked(output), busy, locked(output, shared=True):
        pass


def test_a_file_system_without_locks_is_no_obstacle_to_parts(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(output, shared=True):
        pass
    with pytest.raises(OutputError, match="the output cannot be written"), locked(output):
        pass


# Who plans


def test_parts_that_begin_together_have_one_plan(source: str, tmp_path: Path) -> None:
    output = Output(str(tmp_path / "new"))
    planned: list[str] = []
    begin = threading.Barrier(6)

    def command(number: int) -> str:
        begin.wait(10)
        with turn_to_plan(output, ignore, lambda: False) as found:
            if found is None:
                planner = Planner(output, EmbedRequest.of(source, {}), SETTINGS, ignore, lambda: False)
                plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=False)
                planned.append(plan.id)
                manifest.save(output, plan)
                return plan.id
            return found.plan.id

    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(command, range(6)))
    assert len(planned) == 1
    assert seen == planned * 6


def test_who_waits_for_the_plan_may_be_stopped_and_a_planner_that_fails_lets_the_next_try(output: Output) -> None:
    new = Output(output.url + " new")
    with OutputLease(new, "plan") as lease:
        assert lease.take()
        said: list[str] = []
        with (
            pytest.raises(NotStarted, match="stopped while it was waiting"),
            turn_to_plan(new, said.append, lambda: True),
        ):
            pass
        assert "another command is planning, on" in said[0]
    with pytest.raises(ZeroDivisionError), turn_to_plan(new, ignore, lambda: False):
        raise ZeroDivisionError
    with turn_to_plan(new, ignore, lambda: False) as found:
        assert found is None


def test_the_whole_is_the_only_part_of_one() -> None:
    assert Part(1, 1) == WHOLE
