"""``--update``, in one process: what is done again, what stays, what is told."""

from __future__ import annotations

from pathlib import Path

from clip_queue import embed
from tests.outputs import table
from tests.unit.bulk.in_process import Worker
from tests.unit.bulk.revision_case import FILES, SETTINGS, Case, lines


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
