"""How a source is given: several paths as one, and options that its format has or has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clip_queue.bulk.run.dry_run import dry_run
from clip_queue.bulk.run.reading import one_url
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.shared.errors import BadInput
from clip_queue.sources.source import SourceError


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
    ],
)
def test_what_cannot_be_one_source(source: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says):
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
