"""What is embedded and what is left out, in words, in the markers and in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue import dry_run, embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.scope import passed_lines, scope_text
from clip_queue.bulk.run.workers import NotStarted
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Source
from tests.unit.bulk.in_process import Worker, engine
from tests.unit.bulk.test_run import planned, run

SETTINGS = Settings(models=["emoji-mini"])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Source("/a", "folder", images=True, texts=True), "images and texts"),
        (Source("/a", "folder", images=True, texts=False), "images only"),
        (
            Source("/a", "csv", "image_url", "caption", True, True),
            "images and texts: images from `image_url`, texts from `caption`",
        ),
        (
            Source("/a", "csv", None, "t", False, True, storage={"left_out": {"images": "url"}}),
            "texts only: texts from `t`; the images in `url` are left out: --images",
        ),
        (
            Source("/a", "csv", None, "t", False, True, storage={"odd": {"images": "image"}}),
            "texts only: texts from `t`; no images can be read in `image`",
        ),
        (
            Source("/a", "parquet", None, "t", False, True, storage={"maybe": {"images": ["x", "y"]}}),
            "texts only: texts from `t`; `x`, `y` may hold images: --image-column",
        ),
        (
            Source("/a", "webdataset", images=True, texts=False, storage={"unread": [f"a{n}" for n in range(9)]}),
            "images only; members .a0, .a1, .a2, .a3, .a4, .a5, .a6, .a7, … are not read",
        ),
    ],
)
def test_what_will_be_embedded_is_said(source: Source, text: str) -> None:
    assert scope_text(source) == text


def test_what_was_left_out_is_said() -> None:
    source = Source("/a", "webdataset", images=False, texts=True)
    assert scope_text(source, {}) == "texts only"
    assert scope_text(source, {"images": 1200}) == "texts only; 1,200 rows hold images that are left out: --images"
    assert scope_text(source, {"images": 1}) == "texts only; 1 row holds images that are left out: --images"


def test_files_of_other_kinds_are_named() -> None:
    source = Source("/a", "folder", storage={"passed": {"": [1, "Makefile"], ".svg": [1200, "d/a.svg"]}})
    assert passed_lines(source) == [
        "1,201 files of other kinds are left out: 1,200 .svg (d/a.svg), 1 without a suffix (Makefile)"
    ]
    assert passed_lines(Source("/a", "folder")) == []
    table = Source("/a", "folder", storage={"passed": {".csv": [1, "labels.csv"]}})
    said = ["1 file of another kind is left out: 1 .csv, which --format csv reads (labels.csv)"]
    assert passed_lines(table) == said


def test_images_that_no_row_names_are_counted() -> None:
    storage = {"passed": {".png": [3, "0.png"], ".jpg": [2, "0.jpg"]}, "image": "text"}
    source = Source("/a", "csv", "file_name", images=True, storage=storage)
    assert passed_lines(source) == passed_lines(source, 5) == []
    assert passed_lines(source, 2) == ["3 of the 5 images there, or more, are left out: no row names them"]


@pytest.mark.parametrize(
    ("holds", "said"),
    [({}, True), ({"image": "text"}, False), ({"image": "list of text"}, False), ({"image": "bytes"}, True)],
)
def test_images_that_a_table_names_by_their_paths_are_not_left_out(holds: dict[str, str], said: bool) -> None:
    storage = {"passed": {".png": [1, "0.png"], ".md": [1, "README.md"]}, **holds}
    (line,) = passed_lines(Source("/a", "csv", "file_name", images=True, storage=storage))
    assert (".png" in line) == said
    assert ".md" in line


def test_the_count_is_in_the_markers_and_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("url,text\na.png,one\n,two\nc.png,three\nd.png,\ne.png,five\n")
    output = Output(str(tmp_path / "out"))
    with engine(SETTINGS) as it:
        report = run(Worker(it), output, planned(str(tmp_path / "in.csv"), output, images=False))
    assert report.left_out == {"images": 4}
    text = "texts only: texts from `text`; 4 rows hold images that are left out: --images"
    assert report.scope() == [text]
    found = manifest.load(output)
    assert found is not None
    assert found.result is not None
    assert found.result["left_out"] == {"images": 4}


def test_rows_without_a_text_are_counted() -> None:
    report = Report("out", "m", "f", 1, source=Source("/a", "folder", images=True, texts=True))
    marker = {"rows": 3, "failed": 0, "errors": {}}
    report.count({**marker, "without_text": 3, "left_out": {}})
    report.count(marker)  # as release 0.1.0 writes it
    assert report.scope() == ["images and texts", "3 rows have no text: zeros stand for it"]
    report.count({**marker, "without_text": 6})
    assert report.scope()[1] == "no row has a text: zeros stand for it"


def test_it_is_said_at_the_start_and_in_a_dry_run(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "a.txt", "b.png", "c.svg"):
        (folder / name).write_bytes(b"x")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise NotStarted("enough is said")

    with pytest.raises(NotStarted):
        embed(str(folder), str(tmp_path / "out"), say=say, settings=SETTINGS)
    passed = "1 file of another kind is left out: 1 .svg (c.svg)"
    assert said == ["embedding images and texts", passed]
    dry = dry_run(str(folder))
    assert (scope_text(dry.source), passed_lines(dry.source)) == ("images and texts", [passed])
