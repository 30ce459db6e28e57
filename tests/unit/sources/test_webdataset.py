"""Tars as sources: what makes a row."""

from __future__ import annotations

import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.shared.settings import Settings
from clip_queue.sources.formats.webdataset import APART
from clip_queue.sources.source import SourceError
from tests.unit.sources.tables import why
from tests.unit.sources.tar_files import (
    EXPECTED,
    MEMBERS,
    Member,
    find,
    planned,
    read,
    rows,
    special,
    summary,
    tar,
)

# Rows


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_a_name_are_a_row(t: Path, format: int) -> None:
    t.write_bytes(tar(MEMBERS, format))
    found = rows(t)
    assert summary(found) == EXPECTED
    assert all(row.error is None and row.columns["caption"] == row.text for row in found)
    for path, data, _ in EXPECTED:
        assert find(planned(t)[0], path) == data


def test_their_json_is_their_columns(t: Path) -> None:
    done, _ = planned(t)
    assert list(done.columns) == ["key", "width", "license", "extra"]
    assert done.columns["width"] == "int64"
    first, second, third, _ = rows(t)
    own = {name: first.columns[name] for name in done.columns}
    assert own == {"key": "a/0001", "width": 3, "license": "CC0", "extra": None}
    assert (second.columns["key"], second.columns["license"]) == ("a/0002", None)
    assert third.columns["width"] is None
    given_ones = rows(t, columns={"license": "string"})
    assert set(given_ones[0].columns) == {"image_path", "caption", "license"}


def test_what_is_embedded_is_learnt_from_the_first_rows(tmp_path: Path) -> None:
    def learnt(*members: Member, **about: Any) -> tuple[bool | None, bool | None]:
        (tmp_path / "t.tar").write_bytes(tar(members))
        done, _ = planned(tmp_path / "t.tar", **about)
        return done.images, done.texts

    assert learnt(("a.jpg", b"x")) == (True, False)
    assert learnt(("a.jpg", b"x"), ("b.jpg", b"x"), ("b.txt", b"x")) == (True, True)
    assert learnt(("a.txt", b"x")) == (False, True)
    assert learnt(("a.json", b'{"caption": "x"}')) == (False, True)
    assert learnt(("a.jpg", b"x"), ("a.json", b'{"caption": 3}')) == (True, False)
    assert learnt(("a.jpg", b"x"), ("a.txt", b" ")) == (True, False)
    assert learnt(("a.jpg", b"x"), ("a.txt", b"x"), texts=False) == (True, False)
    assert learnt(("a.jpg", b"x"), ("a.txt", b"x"), images=False) == (False, True)
    with pytest.raises(SourceError, match=r"texts are asked for, and no row of .* has a caption"):
        learnt(("a.jpg", b"x"), ("b.jpg", b"x"), texts=True)
    for about in ({}, {"images": False}, {"texts": False}):
        with pytest.raises(SourceError, match="nothing that is wanted"):
            learnt(("a.cls", b"x"), **about)


def test_images_that_are_not_wanted_are_not_read(t: Path) -> None:
    found = rows(t, images=False)
    assert [(path, None, text) for path, _, text in EXPECTED] == summary(found)
    assert all(row.error is None for row in found)


def test_names_are_split_as_webdataset_splits_them(tmp_path: Path) -> None:
    names = [
        "./0.jpg", "x/0.jpg", "y/0.JPG", "a.b/c.jpg", ".hidden.jpg", "d/._0.jpg", "README", "e/noext", "f.v2.jpg",
        "h.v3", "g h'\"\n.jpg", "-rf.jpg", "../up.jpg", "/abs.jpg", "\\xff.jpg",
    ]  # fmt: skip
    raw = tarfile.TarInfo("raw \udcff.jpg")
    (tmp_path / "t.tar").write_bytes(tar([*((name, name.encode()) for name in names), (raw, b"raw")]))
    found = rows(tmp_path / "t.tar")
    kept = [name for name in names if name not in (".hidden.jpg", "d/._0.jpg", "README", "e/noext", "h.v3")]
    images = [row for row in found if row.error is None]
    assert summary(images) == [
        *((f"t.tar/{name}", name.encode(), None) for name in kept),
        ("t.tar/raw \\xff.jpg", b"raw", None),
    ]
    assert [row.columns["key"] for row in images][:4] == ["./0", "x/0", "y/0", "a.b/c"]
    (other,) = (row for row in found if row.error is not None)
    assert other.columns["image_path"] == "t.tar/h"
    assert other.error is not None
    assert other.error.message.endswith("The row has no image, only .v3.")
    for row in images:
        assert find(planned(tmp_path / "t.tar")[0], row.columns["image_path"]) == row.image
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar"]


def test_only_members_in_a_row_are_one(tmp_path: Path) -> None:
    members: list[Member] = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("c.jpg", b"4"), ("c.jpg", b"5")]
    (tmp_path / "t.tar").write_bytes(tar([*members, ("d.png", b"6"), ("d.jpg", b"7"), ("d.txt", b"8")]))
    found = rows(tmp_path / "t.tar")
    assert summary(found) == [
        ("t.tar/a.jpg", b"1", None),
        ("t.tar/b.jpg", b"2", None),
        ("t.tar/a", None, "3"),
        ("t.tar/c.jpg", b"4", None),
        ("t.tar/c.jpg", b"5", None),
        ("t.tar/d.png", b"6", "8"),
        ("t.tar/d.jpg", b"7", "8"),
    ]
    assert isinstance(why(found[2]), BadImage)


# Rows that fail


def test_a_row_s_error_is_its_own(tmp_path: Path) -> None:
    members: list[Member] = [
        ("0.jpg", b"x"), ("0.txt", b"fine"),
        ("1.jpg", b"x"), ("1.txt", b"caf\xe9"),
        ("2.jpg", b"x"), ("2.json", b"{"),
        ("3.jpg", b"x"), ("3.json", b"[1]"),
        ("4.jpg", b"x"), ("4.json", b'{"a": NaN, "caption": "nan"}'),
        ("5.jpg", b"x"), ("5.json", b'{"caption": "\\ud800"}'),
        ("6.jpg", b"x"), ("6.json", b"[" * 100_000),
        ("7.jpg", b"x"), ("7.json", b""),
        ("8.txt", b"alone"),
        (special("9.jpg", tarfile.SYMTYPE), b""),
        (special("10.jpg", tarfile.LNKTYPE), b""),
        (special("11.jpg", tarfile.FIFOTYPE), b""),
        (special("12.jpg", tarfile.DIRTYPE), b""),
        ("13.jpg", b"\xef\xbb\xbf"), ("13.txt", b"\xef\xbb\xbfbom"), ("13.json", b'\xef\xbb\xbf{"a": 1}'),
    ]  # fmt: skip
    (tmp_path / "t.tar").write_bytes(tar(members))
    found = {row.columns["key"]: row for row in rows(tmp_path / "t.tar")}
    errors = {key: fault.message for key, row in found.items() if (fault := why(row))}
    assert list(found) == [str(i) for i in range(14) if i != 12]
    assert sorted(errors, key=int) == ["1", "2", "3", "5", "6", "7", "8", "9", "10", "11"]
    assert [key for key, row in found.items() if row.error] == ["9", "10", "11"]
    assert [found[key].image for key in "1235678"] == [b"x"] * 6 + [None]  # what is whole of a row is not lost
    assert found["8"].text == "alone"
    assert errors["1"] == "1.txt is not UTF-8"
    assert errors["2"].startswith("2.json is not JSON: ")
    assert errors["3"] == "3.json is JSON, but no object."
    assert errors["8"].endswith(f"The row has no image, only .txt.{APART}")
    assert errors["9"] == "9.jpg is a link or a device, or has holes"
    assert errors["10"] == "10.jpg is a hard link: make the tar with --hard-dereference"
    assert (found["4"].columns["a"], found["4"].text) == (None, "nan")
    assert (found["13"].columns["a"], found["13"].text) == (1, "bom")
    for row in found.values():
        orjson.dumps(row.columns)


def test_without_texts_a_caption_that_is_none_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("1.jpg", b"x"), ("1.txt", b"caf\xe9"), ("2.jpg", b"x"), ("2.txt", b"good")]))
    assert [(row.error, row.text) for row in rows(tmp_path / "t.tar", texts=False)] == [(None, None), (None, "good")]


def test_large_members_are_passed_over_unread(tmp_path: Path) -> None:
    large = bytes(64 * 2**20)
    members: list[Member] = [("1.jpg", large), ("1.txt", b"x"), ("2.jpg", b"x"), ("2.txt", large), ("2.json", large)]
    (tmp_path / "t.tar").write_bytes(tar([*members, ("3.jpg", bytes(2**20)), ("4.mp4", large), ("4.jpg", b"x")]))
    del large, members
    done, shards = planned(tmp_path / "t.tar", texts=True)
    tracemalloc.start()
    try:
        found = read(done, shards[0], Settings(max_image_bytes=2**20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20
    assert [(fault := why(row)) and fault.message for row in found] == [
        f"1.jpg has {64 * 2**20} bytes, {2**20} at most",
        f"2.txt has {64 * 2**20} bytes, {2**20} at most",
        None,
        None,
    ]
    assert [row.text for row in found] == ["x", None, None, None]


def test_each_image_of_a_sample_is_a_row_with_its_caption(tmp_path: Path) -> None:
    members: list[Member] = [
        ("0.left.png", b"l"), ("0.json", b'{"caption": "a cat", "n": 1}'), ("0.RIGHT.png", b"r"), ("1.left.png", b"m"),
    ]  # fmt: skip
    (tmp_path / "t.tar").write_bytes(tar(members))
    found = rows(tmp_path / "t.tar")
    assert summary(found) == [
        ("t.tar/0.left.png", b"l", "a cat"),
        ("t.tar/0.RIGHT.png", b"r", "a cat"),
        ("t.tar/1.left.png", b"m", None),
    ]
    assert [row.columns["n"] for row in found] == [1, 1, None]
    chosen = rows(tmp_path / "t.tar", image_column="right.PNG")
    assert [row.image for row in chosen] == [b"r", None]
    assert [row.error is None for row in chosen] == [True, False]


def test_a_caption_is_chosen_by_suffix_or_key(tmp_path: Path) -> None:
    members: list[Member] = [
        ("0.jpg", b"x"), ("0.txt", b"plain"), ("0.alt.txt", b"other"), ("0.json", b'{"caption": "c", "title": "t"}'),
    ]  # fmt: skip
    (tmp_path / "t.tar").write_bytes(tar(members))
    for column, text in ((None, "plain"), ("alt.txt", "other"), ("json.title", "t"), ("json.caption", "c")):
        assert [row.text for row in rows(tmp_path / "t.tar", text_column=column)] == [text]
    with pytest.raises(
        SourceError, match=r"no text column 'json.no' .*: .*alt.txt, jpg, json, json.caption, json.title, txt"
    ):
        planned(tmp_path / "t.tar", text_column="json.no")
    with pytest.raises(SourceError, match="no image column 'png'"):
        planned(tmp_path / "t.tar", image_column="png")


def test_what_the_first_tar_lacks_is_looked_for_in_the_next(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n:02}.tar").write_bytes(tar([(f"{n}.txt", b"words")]))
    (tmp_path / "20.tar").write_bytes(tar([("20.jpg", b"x")]))
    source, _ = planned(tmp_path)
    assert (source.images, source.texts) == (True, True)


def test_a_sample_s_images_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([(f"0.{n}.png", b"x") for n in range(70)] + [("1.png", b"y")]))
    found = rows(tmp_path / "t.tar")
    assert all("choose one with the image column" in str(why(row)) for row in found[:-1])
    assert found[-1].error is None
