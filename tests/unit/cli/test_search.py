"""What ``clip-queue search`` prints, and the image that it searches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_queue.bulk.search.index import Hit
from clip_queue.cli.search import MAX_CAPTION, read_image, search, shortened, show
from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from tests.unit.bulk.outputs_by_hand import MODEL, make_output
from tests.unit.cli.printing import console, printed

HITS = [Hit(1, 0.5, 0, 0, "a\tb.jpg", "a [bold]cat[/]\non a mat", {}), Hit(2, 0.25, 0, 1, None, None, {})]


def test_a_log_has_a_line_a_hit_with_tabs_between() -> None:
    out = console()
    show(out, HITS)
    assert printed(out) == "1\t0.500000\ta\\tb.jpg\ta [bold]cat[/]\\non a mat\n2\t0.250000\t\t\n"


def test_a_terminal_has_a_table_of_the_columns_that_are_filled() -> None:
    out = console(terminal=True)
    show(out, HITS)
    text = printed(out)
    assert "path" in text
    assert "a [bold]cat[/] on a mat" in text
    out = console(terminal=True)
    show(out, HITS[1:])
    assert "path" not in printed(out)
    assert "caption" not in printed(out)


def test_json_has_a_line_a_hit_with_all_that_is_known() -> None:
    out = console(terminal=True)
    odd = {"a": 1, "score": "own", "b": [b"x"], "c": float("nan"), "d": 2**64 - 1}
    vector = np.array([0.5, 1], np.float32)
    show(out, [Hit(1, 0.1234567, 2, 3, "a\tb.jpg", "two\nlines é", odd, vector), HITS[1]], as_json=True)
    first, second = map(json.loads, printed(out).splitlines())
    assert first == {
        "rank": 1,
        "score": 0.123457,
        "shard": 2,
        "row": 3,
        "image_path": "a\tb.jpg",
        "caption": "two\nlines é",
        "metadata": {"a": 1, "score": "own", "b": ["x"], "c": None, "d": 2**64 - 1},
        "vector": [0.5, 1.0],
    }
    assert "vector" not in second
    assert second["caption"] is None


def test_near_duplicates_are_printed_by_group(tmp_path: Path) -> None:
    url = make_output(str(tmp_path), [np.ones((3, MODEL.dimension), np.float16)]).url
    out = console()
    asked: dict[str, Any] = dict.fromkeys(("text", "image", "top", "among", "model", "sheet"))
    search(out, console(), Settings(), url, **asked, as_json=True, near_duplicates=0.9)
    lines = [json.loads(line) for line in printed(out).splitlines()]
    assert [(line["group"], line["row"], line["metadata"]["number"]) for line in lines] == [(1, n, n) for n in range(3)]


def test_an_output_of_which_parts_are_missing_is_searched_and_said_to_be(tmp_path: Path) -> None:
    shards = [np.ones((2, MODEL.dimension), np.float16)] * 4
    url = make_output(str(tmp_path), shards, missing=(1, 3)).url
    errors = console()
    asked: dict[str, Any] = dict.fromkeys(("text", "image", "top", "among", "model", "sheet"))
    search(console(), errors, Settings(), url, **asked, near_duplicates=0.9)
    said = "2 of 4 shards are finished: only they are searched; the run, or parts of it, are missing still\n"
    assert printed(errors).startswith(said)


def test_that_there_are_no_near_duplicates_is_said(tmp_path: Path) -> None:
    url = make_output(str(tmp_path), [np.eye(2, MODEL.dimension, dtype=np.float16)]).url
    out, err = console(), console()
    asked: dict[str, Any] = dict.fromkeys(("text", "image", "top", "among", "model", "sheet"))
    search(out, err, Settings(), url, **asked, near_duplicates=0.9)
    assert printed(out) == ""
    assert "none of 2 rows has another one that near" in printed(err)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vectors": True}, "--vectors goes with --json"),
        ({"near_duplicates": 0.9, "text": "x"}, "--near-duplicates goes without"),
        ({"near_duplicates": 0.9, "sheet": Path("a.png")}, "--near-duplicates goes without"),
        ({"near_duplicates": 0.9, "top": 3}, "--near-duplicates goes without"),
        ({"near_duplicates": 0.9, "model": "m"}, "--near-duplicates goes without"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {**dict.fromkeys(("text", "image", "top", "among", "model", "sheet")), **given}
    with pytest.raises(BadInput, match=message):
        search(console(), console(), Settings(), "/nowhere", **asked)


def test_long_captions_are_cut() -> None:
    assert shortened("a  b\nc") == "a b c"
    cut = shortened("word " * 100)
    assert len(cut) <= MAX_CAPTION
    assert cut.endswith("word…")


def test_an_image_is_read_up_to_the_limit_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"12345")
    assert read_image(str(tmp_path / "image"), 10) == b"12345"
    assert len(read_image(str(tmp_path / "image"), 3)) == 4, "so that decoding sees that it is too large"
    with pytest.raises(BadInput, match="none cannot be read: No such file or directory"):
        read_image(str(tmp_path / "none"), 10)
