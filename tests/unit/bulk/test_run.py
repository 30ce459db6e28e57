"""A whole run in one process, and what can end one before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_queue import dry_run, embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import AnotherRun, ForeignOutput, OutputError, SourceChanged, WrongModel
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.planner import Planner, smaller_shard_size
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.resume import check_empty, check_model, check_unchanged
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.workers import NotStarted, NoWorker, common_model, default_workers, find_workers, locked
from clip_queue.shared import ops
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Kind, State
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings, cores
from clip_queue.shared.workers import WorkerInfo
from clip_queue.sources import registry
from clip_queue.sources.source import SourceError
from tests.outputs import matrix, table
from tests.unit.bulk.in_process import INFO, MODEL, Worker

SETTINGS = Settings(models=["emoji-mini"])
TEXTS = ["a", "bb", "", "dddd", "eeeee", "ffffff", "g"]  # the third fails


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "in.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return str(path)


def planned(source: str, output: Output, **options: Any) -> manifest.RunPlan:
    given: Any = {"shard_size": 3, "batch_size": 2, **options}
    planner = Planner(output, EmbedRequest.of(source, given), SETTINGS, ignore, lambda: False)
    plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=True)
    manifest.save(output, plan)
    return plan


def run(worker: Worker, output: Output, plan: manifest.RunPlan, **options: Any) -> Report:
    more: Any = {"retry": RetryPolicy(), "show": ignore, "should_stop": lambda: False, **options}
    return run_plan(SETTINGS, output, plan, worker.store, **more)


def test_a_run_embeds_every_row_and_reports_those_that_fail(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    report = run(worker, output, planned(source, output))
    assert (report.rows, report.failed, report.shards, report.complete, report.status) == (6, 1, 3, 3, 3)
    assert (report.finished, report.resumed, report.stopped, report.lost) == (True, 0, False, {})
    assert report.reasons["bad_input"].examples == [("in.txt#2", "Line 3 is empty.")]
    assert report.rate > 0
    good = [text for text in TEXTS if text]
    np.testing.assert_allclose(matrix(tmp_path / "out", "text_emb"), 1 / np.sqrt(3), atol=1e-3)
    assert [row["caption"] for row in table(tmp_path / "out")] == good
    found = manifest.load(output)
    assert found is not None
    assert found.result is not None
    assert (found.result["rows"], len(found.result["shards"])) == (6, 3)
    assert len(worker.sent) == 3


def test_a_run_that_goes_on_does_only_what_is_missing(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output)
    run(worker, output, plan)
    (tmp_path / "out" / output.names(1, 3)["shard"]).unlink()
    again = Worker(worker.engine)
    report = run(again, output, plan)
    assert (report.rows, report.failed, report.resumed, len(again.sent)) == (6, 1, 4, 1)


def test_told_to_stop_a_run_says_how_far_it_is(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    report = run(worker, output, planned(source, output), should_stop=lambda: True)
    assert (report.status, report.stopped, report.finished, report.rows) == (130, True, False, 0)


def test_a_run_waits_for_shards_whose_messages_are_lost(source: str, tmp_path: Path, worker: Worker) -> None:
    worker.deaf = True
    output = Output(str(tmp_path / "out"))
    looks: list[int] = []
    run(worker, output, planned(source, output), show=lambda _: looks.append(1), should_stop=lambda: len(looks) > 2)
    assert len(looks) > 2, "the run goes on"
    assert len(worker.sent) == 3, "nothing is sent twice: that is the reconciler's"


def test_an_output_that_fails_ends_the_run_and_its_job(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output)

    def fail(_: object) -> None:
        raise OSError(28, "no space")

    with pytest.raises(OutputError, match="the output cannot be written: the disk is full: make room"):
        run(worker, output, plan, show=fail)


def test_a_command_that_ends_by_a_mistake_of_its_own_ends_its_job_as_failed(
    source: str, tmp_path: Path, worker: Worker
) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output)

    def show(_: object) -> None:
        raise KeyError("mistake")

    with pytest.raises(KeyError, match="mistake"):
        run(worker, output, plan, show=show)
    ids = [key.decode().rpartition(":")[2] for key in worker.store.client.keys("cq:job:*")]
    jobs = [worker.store.execute(ops.view(job_id)).job for job_id in ids]
    (led,) = [job for job in jobs if job.kind is Kind.EMBED_DATASET]
    assert led.state is State.FAILED
    assert led.error is not None
    assert led.error["message"] == "the command that led this run ended with KeyError"


def test_a_worker_with_another_model_says_so_and_ends_the_run(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output)
    worker.engine.models[MODEL].fingerprint = "g"
    with pytest.raises(WrongModel, match="the plan is for m f; worker w has g"):
        run(worker, output, plan)


def test_a_worker_that_does_not_see_the_plan_says_so(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output)
    (tmp_path / "out" / "manifest.json").unlink()
    report = run(worker, output, plan)
    assert report.lost[0] == f"worker on w does not see the run's plan in {tmp_path / 'out'}"
    assert report.status == 1


# What is asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "7z"}, f"format '7z' is not known: use one of {', '.join(registry.FORMATS)}"),
        ({"dtype": "int8"}, "dtype 'int8' is not known: use float16 or float32"),
        ({"shard_size": 0}, "shard_size is 0: use 1 to 10000000"),
        ({"batch_size": 5000}, "batch_size is 5000: use 1 to 4096"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_right(source: str, tmp_path: Path, options: Any, message: str) -> None:
    for call in (lambda: dry_run(source, **options), lambda: embed(source, str(tmp_path / "out"), **options)):
        with pytest.raises(BadInput) as refused:
            call()
        assert refused.value.message == message


def test_an_option_that_there_is_not_is_a_mistake_of_the_caller(source: str) -> None:
    with pytest.raises(TypeError, match=r"embed\(\) has no option 'shards'"):
        dry_run(source, shards=3)  # type: ignore[call-arg]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(source: str, tmp_path: Path) -> None:
    dry = dry_run(source)
    assert (dry.rows, dry.shards, dry.source.format, dry.first) == (7, 1, "text", [source])
    assert dry_run(source, shard_size=2).shards == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]


@pytest.mark.parametrize(
    ("rows", "size"), [(None, 10_000), (7, 250), (16_000, 250), (32_000, 500), (640_000, 10_000), (10**9, 10_000)]
)
def test_a_source_of_few_rows_is_cut_into_more_shards(rows: int | None, size: int) -> None:
    assert smaller_shard_size(rows) == size


@pytest.mark.parametrize(("device", "shared", "size"), [("cuda:0", True, 256), ("cpu", True, 8), ("cpu", False, 32)])
def test_batches_suit_the_device_and_who_else_waits(
    source: str, tmp_path: Path, device: str, shared: bool, size: int
) -> None:
    output = Output(str(tmp_path / "out"))
    planner = Planner(output, EmbedRequest.of(source, {}), SETTINGS, ignore, lambda: False)
    plan = planner.plan(planner.write_shards(), INFO, device, shared_workers=shared)
    assert (plan.options.batch_size, plan.options.shard_size) == (size, 250)


def test_planning_ends_when_it_is_told_to(source: str, tmp_path: Path) -> None:
    planner = Planner(Output(str(tmp_path / "out")), EmbedRequest.of(source, {}), SETTINGS, ignore, lambda: True)
    with pytest.raises(NotStarted, match="stopped while it was planning"):
        planner.write_shards()


# What is there already


def test_source_and_output_are_two_things(source: str) -> None:
    with pytest.raises(OutputError, match="source and output are the same: choose another output"):
        embed(source, source)


def test_what_comes_into_a_folder_does_not_make_another_run_of_it(tmp_path: Path) -> None:
    """The format is told by what lies there, and a table among images outweighs them."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"")
    begun = EmbedRequest.of(folder, {}).source
    (folder / "notes.parquet").write_bytes(b"")
    again = EmbedRequest.of(folder, {})
    assert (begun.format, again.source.format) == ("folder", "parquet")
    assert again.going_on(begun).source == begun
    named = EmbedRequest.of(folder, {"format": "parquet"})
    assert named.going_on(begun) == named, "who names it is told that it differs"
    other = EmbedRequest.of(tmp_path, {"format": None})
    assert other.going_on(begun) == other


@pytest.mark.parametrize("under", [False, True])
def test_an_output_that_is_a_file_is_told_so(source: str, tmp_path: Path, under: bool) -> None:
    (tmp_path / "out").write_text("not a folder")
    output = tmp_path / "out" / "under" if under else tmp_path / "out"
    with pytest.raises(OutputError, match="there is a file of that name: choose a folder"):
        embed(source, output, model="m=none/none", settings=SETTINGS)


def test_a_finished_run_is_reported_without_any_worker(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    run(worker, output, planned(source, output))
    report = embed(source, output.url, model="m=none/none", shard_size=3, settings=SETTINGS)
    assert (report.rows, report.failed, report.finished) == (6, 1, True)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"dtype": "float32"}, "dtype is 'float16' there, 'float32' here"),
        ({"texts": False, "images": True}, "images is False there, True here"),
        ({"model": "emoji-mini"}, "the model is 'm' there, 'emoji-mini' here"),
    ],
)
def test_another_run_into_the_same_output_is_refused_with_what_differs(
    source: str, tmp_path: Path, options: Any, difference: str
) -> None:
    output = Output(str(tmp_path / "out"))
    planned(source, output)
    with pytest.raises(AnotherRun) as refused:
        embed(source, output.url, **{"model": "m=none/none", "shard_size": 3, **options})
    assert difference in refused.value.message
    assert refused.value.message.endswith("Choose another output, or ask for the same")


def test_an_output_begun_with_another_model_is_refused(source: str, tmp_path: Path) -> None:
    plan = planned(source, Output(str(tmp_path / "out")))
    check_model(plan, "f")
    with pytest.raises(AnotherRun, match=r"the output was begun with m f .*; the workers have g: weights, preproc"):
        check_model(plan, "g")


def test_one_command_an_output_at_a_time(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    busy = pytest.raises(OutputError, match=r"another run is at work in .*: wait for it, or stop it")
    with locked(output), busy, locked(Output(output.url)):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="the output cannot be written"), locked(Output(str(tmp_path / "file"))):
        pass


@pytest.mark.parametrize(
    ("complete", "failed", "stopped", "status"),
    [(2, 0, False, 0), (2, 1, False, 3), (1, 0, False, 1), (1, 0, True, 130)],
)
def test_the_exit_status_says_how_a_run_ended(complete: int, failed: int, stopped: bool, status: int) -> None:
    report = Report("o", "m", "f", 2, complete=complete, failed=failed, stopped=stopped)
    assert report.status == status


def test_a_report_names_the_stage_that_was_waited_for_most() -> None:
    report = Report("o", "m", "f", 1, waited={"reading": 1.0, "decoding": 3.0, "forward": 2.0})
    assert report.limit == "decoding"
    assert Report("o", "m", "f", 1).limit is None
    assert Report("o", "m", "f", 1).rate == 0.0


def test_an_unfinished_output_reports_what_is_complete(source: str, tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    report = Report.of(output, planned(source, output), [])
    assert (report.rows, report.shards, report.finished) == (0, 3, False)


# Who does it


def other(name: str = MODEL, fingerprint: str = "f", work: tuple[str, ...] = ("embed_shard",)) -> WorkerInfo:
    return WorkerInfo(
        "o", "h", 2, "cpu", models=[ModelInfo(name, "none", fingerprint, 3, 8, (4, 4), "fp32")], work=[*work]
    )


def test_workers_are_those_that_serve_the_model_and_do_shards(worker: Worker) -> None:
    worker.store.execute(ops.beat("o", other(work=()).pack(), 60, []))
    assert [w.id for w in find_workers(worker.store, MODEL, lambda: False, 5)] == ["w"]


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (None, "no worker is alive there"),
        (other("x"), "the workers there serve x"),
        (other(work=()), "the workers there serve m, without bulk"),
    ],
)
def test_without_workers_it_says_who_is_there(worker: Worker, info: WorkerInfo | None, reason: str) -> None:
    worker.store.client.flushall()
    if info:
        worker.store.execute(ops.beat("o", info.pack(), 60, []))
    with pytest.raises(NoWorker) as refused:
        find_workers(worker.store, MODEL, lambda: False, 0.1)
    assert refused.value.message == f"nobody does bulk work for m on this Redis: {reason}"
    with pytest.raises(NotStarted, match="stopped while it was looking for workers"):
        find_workers(worker.store, MODEL, lambda: True, 5)


def test_workers_must_agree_on_the_model() -> None:
    assert common_model([other(), other()], MODEL).fingerprint == "f"
    with pytest.raises(
        NoWorker, match=r"the workers' m differ .*: set one CLIP_QUEUE_PRECISION and one CLIP_QUEUE_RES"
    ):
        common_model([other(), other(fingerprint="g")], MODEL)


def test_on_a_cpu_a_worker_a_core_is_started_and_at_most_four() -> None:
    assert default_workers(Settings(device="cpu")) == min(4, cores())


def test_a_missing_source_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing does not exist"):
        embed(str(tmp_path / "missing"), str(tmp_path / "out"))


def test_an_output_of_somebody_else_s_is_not_touched(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "img_emb").mkdir(parents=True)
    (out / "img_emb" / "img_emb_0.npy").write_bytes(b"theirs")
    with pytest.raises(ForeignOutput, match=r"is not empty, and holds no manifest.json of a run \(img_emb\)"):
        embed(source, str(out), settings=SETTINGS)
    assert [path.name for path in out.rglob("*") if path.is_file() and path.name != ".lock"] == ["img_emb_0.npy"]


def test_what_a_killed_planning_left_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("plan.parquet", ".lock", ".DS_Store"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"")
    check_empty(Output(str(out)))
    check_empty(Output(str(tmp_path / "not there")))


def test_a_finished_run_notices_that_its_source_has_changed(source: str, tmp_path: Path, worker: Worker) -> None:
    output = Output(str(tmp_path / "out"))
    plan = planned(source, output)
    run(worker, output, plan)
    found = manifest.load(output)
    assert found is not None
    assert found.plan == plan, "with the time of its planning"
    check_unchanged(output, found.plan)
    with Path(source).open("a") as file:
        file.write("new\n")
    with pytest.raises(SourceChanged, match=r"1 file has changed \(in.txt\)"):
        check_unchanged(output, found.plan)
