"""How a source is given: several paths as one, and options that its format has or has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.planner import Planner, dry_run
from clip_queue.bulk.run.reading import one_url
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from tests.images import noise_image
from tests.unit.sources.tar_files import tar


def test_several_paths_are_one_source(tmp_path: Path) -> None:
    for name in ("a b.txt", "é/c.txt", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one\ntwo\n")
    paths = [tmp_path / "d.txt", str(tmp_path / "a b.txt"), tmp_path / "d.txt", tmp_path / "é" / "c.txt"]
    assert one_url(paths) == f"{tmp_path}/{{d.txt,a b.txt,é/c.txt}}"
    assert dry_run(paths).rows == 6
    assert dry_run(paths[0]).rows == dry_run([paths[0]]).rows == 2
    assert dry_run(tmp_path).rows == 6
    assert one_url(["s3://b/x/1.tar", "s3://b/y/2.tar"]) == "s3://b/{x/1.tar,y/2.tar}"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "there is no source"),
        (["a.tar", "b*.tar"], "cannot be one of several sources"),
        (["a.tar", "b,c.tar"], "cannot be one of several sources"),
        (["s3://a/b.tar", "gs://a/b.tar"], "do not lie in one store"),
        ("", "the name of the source is empty"),
        (" ", "the name of the source is empty"),
        (["a.tar", ""], "the name of the source is empty"),
        (b"/a/\xff.tar", r"is not UTF-8: /a/\\xff.tar"),
        (None, "a source is a path, a URL or several, and no NoneType"),
        ([3], "a source is a path, a URL or several, and no int"),
    ],
)
def test_what_cannot_be_one_source(source: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        one_url(source)


@pytest.mark.parametrize(
    ("name", "option", "says"),
    [
        ("a.txt", {"delimiter": ","}, "the format text has no delimiter: csv have"),
        ("a.parquet", {"encoding": "utf-16"}, "the format parquet has no encoding"),
        ("a.tar", {"image_root": "x"}, "the format webdataset has no image root"),
        ("a.jsonl", {"quoting": False}, "the format jsonl has no quoting"),
        ("a.csv", {"delimiter": "ab"}, "delimiter 'ab' is not one character"),
        ("a.csv", {"delimiter": '"'}, "is not one character"),
        ("a.csv", {"encoding": "klingon"}, "encoding 'klingon' is not known"),
        ("a.csv", {"encoding": "base64"}, "encoding 'base64' is not known"),
        ("a.csv", {"encoding": "idna"}, "encoding 'idna' is not known"),
        ("a.csv", {"encoding": "punycode"}, "encoding 'punycode' is not known"),
        ("a.csv", {"text_column": "a", "texts": False}, "a column of texts is named, and texts are not wanted"),
        ("a.tar", {"image_column": "a", "images": False}, "a column of images is named, and images are not wanted"),
        ("a.csv", {"images": False, "texts": False}, "neither images nor texts are wanted"),
        ("a.csv", {"limit": "3"}, "limit is 3: use 1 to"),
        ("a.csv", {"sample": "0.5"}, "sample is 0.5: use a share"),
        ("a.csv", {"sample": 0}, "sample is 0: use a share"),
    ],
)
def test_an_option_is_used_or_refused(tmp_path: Path, name: str, option: Any, says: str) -> None:
    (tmp_path / name).write_bytes(b"text\nx\n")
    with pytest.raises(BadInput, match=says):
        EmbedRequest.of(str(tmp_path / name), option)


def test_what_is_asked_of_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\nx\n")
    asked = EmbedRequest.of(
        path, {"delimiter": "tab", "quoting": True, "encoding": "UTF-8", "image_root": str(tmp_path)}
    )
    assert asked.source.storage == {"delimiter": "\t", "image_root": str(tmp_path)}
    assert EmbedRequest.of(path, {"quoting": False, "encoding": "cp1252"}).source.storage == {
        "quoting": False,
        "encoding": "cp1252",
    }


@pytest.mark.parametrize("name", ["", " ", "/a/\udcff"])
def test_an_output_has_a_name(name: str) -> None:
    with pytest.raises(BadInput, match="the name of the output is"):
        Output(name)


def test_images_that_are_listed_are_a_source(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/2.png", "b/c/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "1.txt").write_text("one")
    for names, count, texts in (
        (["a/0.png", "b/2.png"], 2, False),
        (["a/1.png"], 1, True),
        (["a", "b"], 4, True),
        (["a", "b/c/3.png"], 3, True),
        (["*/*.png"], 3, True),
        (["*"], 4, True),
    ):
        found = dry_run([tmp_path / name for name in names])
        assert (found.source.format, found.rows, found.source.texts) == ("folder", count, texts)


def test_so_many_paths_are_a_source_that_they_are_longer_than_a_name_may_be(tmp_path: Path) -> None:
    names = [f"{'x' * 60}{n:03}.txt" for n in range(100)]
    for name in names:
        (tmp_path / name).write_text("one\n")
    assert dry_run([tmp_path / name for name in names]).rows == 100
    (tmp_path / names[50]).unlink()
    with pytest.raises(BadInput, match=f"{names[50]} does not exist"):
        dry_run([tmp_path / name for name in names])
    with pytest.raises(BadInput) as caught:
        dry_run([tmp_path / name for name in names], format="parquet")
    assert len(caught.value.message) < 1000


def test_a_shard_size_that_does_not_count_is_said(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar([("0.png", noise_image())]))
    said: list[str] = []
    request = EmbedRequest.of(tmp_path, {"shard_size": 3})
    planner = Planner(Output(str(tmp_path / "out")), request, Settings(), said.append, lambda: False)
    planner.write_shards()
    assert said == ["the shard size is not used: each archive is a shard of its own"]
