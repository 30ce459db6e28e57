"""What belongs to a row of a tar: each image's own caption, its own errors, and what is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.bulk.run.scope import scope_text
from clip_queue.shared.settings import Settings
from clip_queue.sources.formats import tar_survey
from clip_queue.sources.source import SourceError
from tests.unit.sources.tables import why
from tests.unit.sources.tar_files import Member, find, planned, read, rows, summary, tar


def test_a_caption_of_one_image_goes_before_that_of_all(tmp_path: Path) -> None:
    members: list[Member] = [
        ("0.left.png", b"l"), ("0.left.txt", b"the left"), ("0.right.png", b"r"), ("0.txt", b"both"),
        ("0.right.json", b'{"n": 2}'), ("0.json", b'{"n": 1}'),
        ("img.2020.01.png", b"1"), ("img.2020.01.txt", b"one"), ("img.2020.02.png", b"2"), ("img.2020.02.txt", b"two"),
    ]  # fmt: skip
    (tmp_path / "t.tar").write_bytes(tar(members))
    found = rows(tmp_path / "t.tar")
    assert summary(found) == [
        ("t.tar/0.left.png", b"l", "the left"),
        ("t.tar/0.right.png", b"r", "both"),
        ("t.tar/img.2020.01.png", b"1", "one"),
        ("t.tar/img.2020.02.png", b"2", "two"),
    ]
    assert [row.columns["n"] for row in found] == [1, 2, None, None]
    texts = rows(tmp_path / "t.tar", images=False)
    assert [row.text for row in texts] == ["both", "one", "two"]
    assert texts[1].columns["image_path"] == "t.tar/img.2020.01.png"


def test_texts_alone_are_rows_each(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("a.1.txt", b"one"), ("a.2.txt", b"two"), ("b.txt", b"three")]))
    assert summary(rows(tmp_path / "t.tar")) == [
        ("t.tar/a.1", None, "one"),
        ("t.tar/a.2", None, "two"),
        ("t.tar/b", None, "three"),
    ]


def test_an_image_s_error_is_its_own(tmp_path: Path) -> None:
    large = bytes(2000)
    members: list[Member] = [("0.left.png", large), ("0.right.png", b"r"), ("0.left.txt", b"\xff"), ("0.txt", b"x")]
    (tmp_path / "t.tar").write_bytes(tar(members))
    done, (pieces,) = planned(tmp_path / "t.tar")
    left, right = read(done, pieces, Settings(max_image_bytes=1024))
    assert left.error is not None, "neither its image nor its text"
    assert sorted(left.faults) == ["image", "text"]
    assert (right.image, right.text, right.faults) == (b"r", "x", {})


def test_a_sample_s_texts_are_bounded(tmp_path: Path) -> None:
    members: list[Member] = [("0.png", b"x"), ("0.txt", b"x"), *((f"0.{n}.txt", b"y") for n in range(100))]
    (tmp_path / "t.tar").write_bytes(tar(members))
    assert summary(rows(tmp_path / "t.tar")) == [("t.tar/0.png", b"x", "x")]
    (tmp_path / "t.tar").write_bytes(tar(members[2:]))
    assert [str(why(row)) for row in rows(tmp_path / "t.tar")[-1:]] == ["0.99.txt is one of more than 64 texts of 0"]


def test_what_is_late_in_later_tars_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare: list[Member] = [(f"{n:03}.png", b"x") for n in range(tar_survey.SAMPLE_ROWS)]
    late: list[Member] = [("z.left.jpg", b"x"), ("z.txt", b"late")]
    (tmp_path / "a.tar").write_bytes(tar(bare))
    (tmp_path / "b.tar").write_bytes(tar([*bare, *late]))
    assert planned(tmp_path)[0].texts is True
    assert planned(tmp_path, image_column="left.jpg")[0].images is True
    assert planned(tmp_path, text_column="txt")[0].texts is True
    with pytest.raises(SourceError, match=r"no text column 'alt' in the rows of .*, which have: left.jpg, png, txt"):
        planned(tmp_path, text_column="alt")
    with pytest.raises(SourceError, match=r"no image column 'up\.jpg' in the rows"):
        planned(tmp_path, image_column="up.jpg")
    monkeypatch.setattr(tar_survey, "LOOK_ROWS", tar_survey.SAMPLE_ROWS)
    assert planned(tmp_path)[0].texts is False, "so many rows are looked at"
    assert planned(tmp_path, texts=True)[0].texts is True, "and all of them for what is asked for"
    (tmp_path / "b.tar").write_bytes(tar([("0.txt", b"x")]))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(SourceError, match=r"images are asked for, and no row of .* has one, which have: txt"):
        planned(tmp_path, images=True)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("0.png", b"x"), ("0.json", b'{"text": "a", "captions": ["b"], "n": 1}')],
         "images only; `json.captions`, `json.text` may hold texts: --text-column"),
        ([("0.png", b"x"), ("0.caption", b"a"), ("0.alt.txt", b"b")],
         "images only; `alt.txt`, `caption` may hold texts: --text-column"),
        ([("0.bin", b"x"), ("0.txt", b"a")], "texts only; members .bin are not read"),
        ([("0.png", b"x"), ("0.txt", b"a"), ("0.cls", b"1"), ("0.npy", b"1")],
         "images and texts; members .cls, .npy are not read"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(tmp_path: Path, members: list[Member], text: str) -> None:
    (tmp_path / "t.tar").write_bytes(tar(members))
    assert scope_text(planned(tmp_path / "t.tar")[0]) == text


def test_what_holds_nothing_to_embed_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("a.tar", b"x"), ("b.cls", b"1")]))
    with pytest.raises(
        SourceError, match=r"nothing that is wanted .*, which have: cls, tar: name one with --image-col"
    ):
        planned(tmp_path / "t.tar")


def test_an_image_of_a_suffix_of_its_own_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar([("0.bin", b"zero"), ("1.bin", b"one")]))
    source, _ = planned(tmp_path / "t.tar", image_column="bin")
    assert find(source, "t.tar/1.bin") == b"one"
