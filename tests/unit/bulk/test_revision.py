"""``--update`` and ``--retry-failed``, in one process: what is done again, what stays, what is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pytest

from clip_queue import dry_run, embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import SourceChanged
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.markers import complete_markers
from clip_queue.bulk.output.shard_reference import ShardReference
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.revision import revise, settle
from clip_queue.bulk.shard.handler import ShardHandler
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import SourceError
from tests.outputs import table
from tests.unit.bulk import in_process
from tests.unit.bulk.in_process import INFO, Worker, engine

SETTINGS = Settings(models=["emoji-mini"])


@pytest.fixture
def worker() -> Iterator[Worker]:
    with engine(SETTINGS) as it:
        yield Worker(it)


class Case:
    """A source of text files and an output of it, three rows a shard."""

    def __init__(self, folder: Path, worker: Worker, files: dict[str, str], **options: Any) -> None:
        self.output = Output(options.pop("output", str(folder / "out")))
        self.folder, self._worker = folder / "in", worker
        self.options = {"shard_size": 3, "batch_size": 2, **options}
        self.work = self.run
        self.folder.mkdir()
        for name, text in files.items():
            self.write(name, text)
        planner = Planner(self.output, EmbedRequest.of(self.url, self.options), SETTINGS, ignore, lambda: False)  # type: ignore[arg-type]
        plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=True)
        now = time.time()
        for path in self.folder.iterdir():
            os.utime(path, (now - 2000, now - 2000))
        plan = replace(plan, planned=now - 1000)
        manifest.save(self.output, plan)
        assert self.run(self.output, plan).finished

    @property
    def url(self) -> str:
        return str(self.folder)

    @property
    def plan(self) -> manifest.RunPlan:
        found = manifest.load(self.output)
        assert found is not None
        return found.plan

    def run(self, output: Output, plan: manifest.RunPlan) -> Report:
        sender: Any = self._worker
        return run_plan(
            SETTINGS,
            output,
            plan,
            self._worker.store,
            sender,
            retry=RetryPolicy(),
            show=ignore,
            should_stop=lambda: False,
        )

    def write(self, name: str, text: str) -> None:
        time.sleep(0.01)  # the system's clock of files is behind by as much
        (self.folder / name).write_text(text)

    def revise(self, **given: Any) -> Report:
        begun = manifest.load(self.output)
        assert begun is not None
        begun = settle(self.output, begun)
        markers = list(complete_markers(self.output, begun.plan))
        before = len(self._worker.sent)
        self._worker.beat()
        report = revise(
            self.output,
            begun.plan,
            markers,
            given,  # type: ignore[arg-type]
            SETTINGS,
            say=ignore,
            should_stop=lambda: False,
            work=self.work,
        )
        self.sent = len(self._worker.sent) - before
        return report

    def update(self) -> Report:
        return self.revise(update=True)

    def rows(self) -> dict[int, list[str]]:
        """The texts of each shard."""
        folder = Path(self.output.url)
        kind = "table" if self.plan.options.layout == "table" else "metadata"
        import pyarrow.parquet as pq

        return {
            int(path.stem.rpartition("_")[2]): pq.read_table(path)["caption"].to_pylist()
            for path in sorted((folder / kind).glob("*.parquet"))
        }

    def files(self) -> dict[str, tuple[bytes, int]]:
        """The files of shards: their bytes, and when they were written."""
        folder = Path(self.output.url)
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for kind in ("text_emb", "metadata", "errors", "shards", "table")
            for path in (folder / kind).glob("*")
        }


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


FILES = {"a.txt": lines("a1", "a2", "a3", "a4"), "c.txt": lines("c1", "c2"), "d.txt": lines("d1", "d2")}


def test_an_update_adds_what_is_new_at_the_end_and_leaves_every_other_byte(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    before = case.files()
    assert case.rows() == {0: ["a1", "a2", "a3"], 1: ["a4", "c1", "c2"], 2: ["d1", "d2"]}
    case.write("b.txt", lines("b1", "b2", "b3", "b4"))
    report = case.update()
    assert (report.rows, report.finished, report.shards, report.resumed) == (12, True, 5, 8)
    assert report.revised == "1 file is new (b.txt): 2 are new"
    assert case.sent == 2
    assert case.rows() == {
        0: ["a1", "a2", "a3"],
        1: ["a4", "c1", "c2"],
        2: ["d1", "d2"],
        3: ["b1", "b2", "b3"],
        4: ["b4"],
    }
    after = case.files()
    assert {name: after[name] for name in before} == before
    assert sorted(path.name for path in Path(case.output.url).iterdir()) == [
        "manifest.json",
        "metadata",
        "plan.parquet",
        "shards",
        "text_emb",
    ]
    again = case.update()
    assert (again.revised, case.sent, case.files()) == ("the source is as it was: nothing to do", 0, after)
    assert embed(case.url, case.output.url, model="m=none/none", settings=SETTINGS).rows == 12


def test_a_file_that_has_grown_keeps_its_rows_where_they_are(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    before = case.files()
    case.write("a.txt", lines("a1", "a2", "a3", "a4", "a5", "a6"))
    report = case.update()
    assert report.revised == "1 file has changed (a.txt): 1 is new"
    assert case.sent == 1, "the rows that were there read as they did"
    assert case.rows()[3] == ["a5", "a6"]
    assert {name: case.files()[name] for name in before} == before
    rows = table(Path(case.output.url))
    assert [(row["source_file"], row["source_row"]) for row in rows if row["caption"] == "a6"] == [("a.txt", 5)]


def test_a_row_that_has_changed_has_its_shard_done_again_and_no_other(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    before = case.files()
    case.write("a.txt", lines("a1", "xx", "a3", "a4"))
    report = case.update()
    assert report.revised == "1 file has changed (a.txt): 1 of 3 shards are embedded again"
    assert case.sent == 1
    assert case.rows() == {0: ["a1", "xx", "a3"], 1: ["a4", "c1", "c2"], 2: ["d1", "d2"]}
    changed = {name for name, about in case.files().items() if before[name] != about}
    assert changed == {f"{kind}_0.{end}" for kind, end in ENDS}


ENDS = [("text_emb/text_emb", "npy"), ("metadata/metadata", "parquet"), ("shards/shard", "json")]


def test_what_is_gone_is_dropped_and_an_empty_shard_leaves_no_empty_files(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    (case.folder / "d.txt").unlink()
    case.write("c.txt", lines("c1"))
    report = case.update()
    assert (report.rows, report.shards) == (5, 3)
    assert case.rows() == {0: ["a1", "a2", "a3"], 1: ["a4", "c1"]}
    assert not [name for name in case.files() if name.endswith(("_2.npy", "_2.parquet"))]
    case.write("e.txt", lines("e1"))
    assert case.update().rows == 6
    assert case.rows()[3] == ["e1"], "a number is never used again"
    (case.folder / "e.txt").unlink()
    assert case.update().rows == 5


def test_a_file_that_was_only_touched_costs_no_forward_pass(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    before = case.files()
    case.write("a.txt", FILES["a.txt"])
    report = case.update()
    assert report.revised == "1 file has changed (a.txt): no shard has to be embedded again"
    assert (case.sent, case.files()) == (0, before)
    assert case.plan.planned > 0


def test_many_updates_one_after_the_other(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    expected = {"a1", "a2", "a3", "a4", "c1", "c2", "d1", "d2"}
    for number, name in enumerate(["b", "0", "z", "c2", "d2", "y", "x", "w", "v"]):
        texts = [f"{name}{n}" for n in range(number % 4 + 1)]
        case.write(f"{name}.txt", lines(*texts))
        expected |= set(texts)
        case.update()
        assert {text for texts in case.rows().values() for text in texts} == expected
    assert case.plan.shards == 14
    assert "text_emb/text_emb_0.npy" in case.files(), "names stay as they were padded at first"
    assert case.update().revised.startswith("the source is as it was")


def test_rows_that_grew_in_an_update_stay_where_that_put_them(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    case.write("a.txt", lines("a1", "a2", "a3", "a4", "a5"))
    case.update()
    case.write("a.txt", lines("a1", "a2", "a3", "a4", "a5", "a6", "a7"))
    case.update()
    assert [case.rows()[shard] for shard in (3, 4)] == [["a5"], ["a6", "a7"]]
    case.write("a.txt", lines("a1", "a2", "a3", "a4", "a5", "a6"))
    case.update()
    assert [case.rows()[shard] for shard in (0, 3, 4)] == [["a1", "a2", "a3"], ["a5"], ["a6"]]


def test_ids_of_a_table_stay_with_their_rows(tmp_path: Path, worker: Worker) -> None:
    import pyarrow.parquet as pq

    def ids() -> dict[str, int]:
        found = [pq.read_table(path).to_pylist() for path in (Path(case.output.url) / "table").iterdir()]
        return {row["caption"]: row["id"] for rows in found for row in rows}

    case = Case(tmp_path, worker, FILES, layout="table")
    before = ids()
    case.write("b.txt", lines("b1"))
    case.write("d.txt", lines("d1", "dd"))
    case.update()
    after = ids()
    assert {text: id for text, id in after.items() if text in before} == {t: i for t, i in before.items() if t != "d2"}
    assert (after["b1"], after["dd"]) == (3 * 10**9, 2 * 10**9 + 1)


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


# Rows that failed


def test_rows_that_failed_are_tried_again_and_come_in_their_places(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = in_process.Model.tokenizer

    def down(self: Any, text: str) -> Any:
        if text in ("a2", "d1"):
            raise BadInput("the network is down")
        return real(self, text)

    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    undisturbed = Case(tmp_path / "1", worker, FILES)
    with monkeypatch.context() as patch:
        patch.setattr(in_process.Model, "tokenizer", down)
        case = Case(tmp_path / "2", worker, FILES)
        assert case.rows() == {0: ["a1", "a3"], 1: ["a4", "c1", "c2"], 2: ["d2"]}
        before = case.files()
        assert case.revise(retry_failed=True).revised.endswith("0 of 2 rows that had failed are embedded now")
        assert case.files() == before, "a shard that comes out no better stays as it was"
    report = case.revise(retry_failed=True)
    assert report.revised.endswith(
        "2 with rows that failed are tried again. 2 of 2 rows that had failed are embedded now"
    )
    assert (report.rows, report.failed, report.status, case.sent) == (8, 0, 0, 2)
    data = [
        {name: about[0] for name, about in each.files().items() if "shards/" not in name}
        for each in (undisturbed, case)
    ]
    assert data[0] == data[1]
    assert case.revise(retry_failed=True).revised == "no row has failed: nothing to do"


def test_both_at_once(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, worker, {**FILES, "c.txt": lines("c1", "")})
    case.write("b.txt", lines("b1"))
    with pytest.raises(SourceChanged, match="--update embeds what is new"):
        case.revise(retry_failed=True)
    report = case.revise(update=True, retry_failed=True)
    assert report.revised == (
        "1 file is new (b.txt): 1 with rows that failed are tried again, 1 is new. "
        "0 of 1 rows that had failed are embedded now"
    )
    assert (report.rows, report.failed) == (8, 1)


# Outputs that are not of today, and not here


def test_an_output_of_an_older_release_is_updated_with_less_to_go_by(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    for path in (Path(case.output.url) / "shards").iterdir():
        marker = orjson.loads(path.read_bytes())
        path.write_bytes(orjson.dumps({name: value for name, value in marker.items() if name not in ADDED}))
    found = orjson.loads((Path(case.output.url) / "manifest.json").read_bytes())
    del found["planned"]
    (Path(case.output.url) / "manifest.json").write_bytes(orjson.dumps(found))
    assert case.plan.version == manifest.VERSION
    case.write("a.txt", lines("a1", "a2", "a3", "a4", "a5"))
    case.write("d.txt", lines("D1", "d2"))  # as large as before, and nobody knows how old the output is
    assert case.update().revised == "1 file has changed (a.txt): 2 of 3 shards are embedded again, 1 is new"
    assert case.rows() == {0: ["a1", "a2", "a3"], 1: ["a4", "c1", "c2"], 2: ["d1", "d2"], 3: ["a5"]}
    case.write("d.txt", lines("D1", "D2"))
    case.update()
    assert case.rows()[2] == ["D1", "D2"], "now it is known"
    assert case.plan.version == manifest.LATER, "an older release refuses shards that it would name otherwise"


ADDED = ("digest", "halves", "cut", "left_out", "without_text")  # to markers, since 0.1.0


def test_a_plan_that_was_not_revised_is_written_as_before(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    assert not {"added", "padded", "revision"} & case.plan.to_json().keys()
    case.write("b.txt", lines("b1"))
    case.update()
    plan = case.plan
    assert (plan.added, plan.padded, plan.revision) == ((3,), 3, None)
    assert manifest.RunPlan.from_json({**plan.to_json(), "planned": plan.planned}) == plan


def test_an_output_in_a_store(tmp_path: Path, worker: Worker) -> None:
    url = f"memory://{tmp_path.name}"
    case = Case(tmp_path, worker, {**FILES, "z.txt": lines("", "")}, output=url)
    case.write("a.txt", lines("a1", "xx", "a3", "a4", "a5"))
    (case.folder / "d.txt").unlink()
    report = case.update()
    assert (report.rows, report.failed, report.shards) == (7, 2, 5)
    store = fsspec.filesystem("memory")
    names = {name.removeprefix(f"/{tmp_path.name}/") for name in store.find(f"/{tmp_path.name}")}
    assert {name for name in names if "shards" not in name} == {
        *(f"{kind}_{n}.{end}" for n in (0, 1, 4) for kind, end in ENDS[:2]),
        *("errors/errors_2.parquet", "errors/errors_3.parquet", "manifest.json", "plan.parquet"),
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


# What makes no sense


def test_what_cannot_be_revised_is_refused(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    call: Any = {"model": "m=none/none", "settings": SETTINGS, "update": True}
    with pytest.raises(BadInput, match="there is no output yet: the same command without --update makes it"):
        embed(case.url, str(tmp_path / "none"), **call)
    (Path(case.output.url) / "shards" / "shard_1.json").unlink()
    with pytest.raises(BadInput, match="not finished: the same command without --update and --retry-failed finishes"):
        embed(case.url, case.output.url, retry_failed=True, **call)
    (tmp_path / "look").mkdir()
    look = Case(tmp_path / "look", worker, FILES, limit=4)
    with pytest.raises(BadInput, match="this output is a first look"):
        embed(look.url, look.output.url, **call)
    with pytest.raises(BadInput, match="dtype is 'float16' there, 'float32' here"):
        embed(look.url, look.output.url, dtype="float32", **call)


def test_an_output_is_not_emptied_by_a_source_that_is_gone(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, {"a.txt": FILES["a.txt"]})
    before = case.files()
    case.write("a.txt", "")
    with pytest.raises(SourceError, match="nothing is left of the source"):
        case.update()
    (case.folder / "a.txt").unlink()
    with pytest.raises(SourceError):
        case.update()
    assert case.files() == before


def test_a_dry_run_of_an_update_says_what_it_would_do(tmp_path: Path, worker: Worker) -> None:
    case = Case(tmp_path, worker, FILES)
    case.write("b.txt", lines("b1"))
    before = case.files()
    dry = dry_run(case.url, case.output.url, update=True, model="m=none/none")
    assert (dry.revised, dry.shards, dry.rows) == ("1 file is new (b.txt): 1 is new", 1, 1)
    assert case.files() == before
    with pytest.raises(BadInput, match="name the output"):
        dry_run(case.url, update=True)
    case.update()
    assert (
        dry_run(case.url, case.output.url, update=True, model="m=none/none").revised
        == "the source is as it was: nothing to do"
    )
