"""``--retry-failed``; outputs of older releases and in stores; what cannot be revised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import orjson
import pytest

from clip_queue import dry_run, embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import SourceChanged
from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import SourceError
from tests.unit.bulk import in_process
from tests.unit.bulk.in_process import Worker
from tests.unit.bulk.revision_case import FILES, SETTINGS, Case, lines

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
        *(
            f"{kind}_{n}.{end}"
            for n in (0, 1, 4)
            for kind, end in (("text_emb/text_emb", "npy"), ("metadata/metadata", "parquet"))
        ),
        *("errors/errors_2.parquet", "errors/errors_3.parquet", "manifest.json", "plan.parquet"),
    }


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
