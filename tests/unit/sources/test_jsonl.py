"""JSON Lines as a source."""

from __future__ import annotations

from pathlib import Path

from clip_queue.sources.formats import jsonl
from clip_queue.sources.source import Source
from tests.unit.sources.tables import SETTINGS, errors, planned, read_all, refusal


def test_jsonl(tmp_path: Path) -> None:
    written = [
        b'{"caption": "one", "url": "u/1.jpg", "n": 1, "x": 1, "deep": {"a": [1]}, "ok": true, "extra": "e"}',
        b'{"caption": "two", "url": "u/2.jpg", "n": 2, "x": 1.5, "deep": null}',
        b'{"caption": null, "url": "u/3.jpg", "n": "three", "late": 1}',
        b'{"caption": "broken", ',
        b"[1, 2]",
        b"",
        b'{"caption": "\xff"}',
        b'{"caption": 5, "url": "u/4.jpg"}',
        b'{"caption": "five", "url": 7}',
        b'{"caption": "six"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(written))
    source, shards = jsonl.plan_shards(Source(str(tmp_path), "jsonl"), 4, SETTINGS, sample_lines=2)
    found = read_all(source, list(shards), 4)
    assert source.columns == {
        "url": "string",
        "n": "int64",
        "x": "double",
        "deep": "string",
        "ok": "bool",
        "source_extra": "string",
        "extra": "string",
    }
    none = dict.fromkeys(source.columns)
    own = {"url": "u/1.jpg", "n": 1, "x": 1.0, "deep": '{"a":[1]}', "ok": True, "source_extra": "e", "extra": None}
    assert found[0].columns == {"image_path": "u/1.jpg", "caption": "one", **own}
    assert found[2].columns == {
        "image_path": "u/3.jpg",
        "caption": None,
        **none,
        "url": "u/3.jpg",
        "extra": '{"n":"three","late":1}',
    }
    assert found[2].error is None
    messages = errors(found)
    assert messages[3].startswith("Line 4 is not JSON:")
    assert messages[4] == "Line 5 is JSON, but no object."
    assert messages[5] == "Line 6 is empty."
    assert messages[6].startswith("Line 7 is not UTF-8")
    assert messages[7] == "The row's text is a int, no text."
    assert messages[8].endswith("The row's image is a int, no path and no URL.")
    assert messages[9].endswith("The row has no image.")
    assert found[7].columns["image_path"] == "u/4.jpg"
    assert len(messages) == 7


def test_jsonl_columns_are_chosen_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "x", "image_path": "1.jpg", "n": 1}\n')
    source, _ = planned(tmp_path, "jsonl", text_column="a")
    assert (source.images, source.texts, source.image_column) == (True, True, "image_path")
    assert source.columns == {"n": "int64", "extra": "string"}
    source, _ = planned(tmp_path, "jsonl", text_column="a", images=False)
    assert source.columns == {"source_image_path": "string", "n": "int64", "extra": "string"}
    assert "no text column 'b'; the columns are: a, image_path, n" in refusal(tmp_path, "jsonl", text_column="b")
    assert "'n' holds none to be read" in refusal(tmp_path, "jsonl", image_column="n")
    assert "looks like texts" in refusal(tmp_path, "jsonl", texts=True)
    assert "nothing to embed" in refusal(tmp_path, "jsonl", images=False)
    (tmp_path / "b.jsonl").write_bytes(b"no json\n")
    assert "no line at its beginning" in refusal(tmp_path / "b.jsonl", "jsonl")


def test_one_odd_value_is_its_row_s_error_and_switches_nothing_off(tmp_path: Path) -> None:
    lines = [f'{{"image": "{n}.png", "caption": {7 if n == 3 else f"{n!s}".join(2 * [chr(34)])}}}' for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source, shards = planned(tmp_path, "jsonl", 10)
    assert (source.image_column, source.text_column) == ("image", "caption")
    found = read_all(source, shards, 10)
    assert [row.text for row in found] == ["0", "1", "2", None, "4"]
    assert errors(found)[3] == "The row's text is a int, no text."


def test_captions_may_begin_anywhere(tmp_path: Path) -> None:
    lines = [b'{"image": "a.png", "n": 1}'] * 50 + [b"broken", b'{"image": "b.png", "caption": "late"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source, _ = jsonl.plan_shards(Source(str(tmp_path), "jsonl"), 100, SETTINGS, sample_lines=10)
    assert (source.images, source.texts, source.text_column) == (True, True, "caption")
    without, _ = jsonl.plan_shards(Source(str(tmp_path), "jsonl", texts=False), 100, SETTINGS, sample_lines=10)
    assert (without.images, without.texts) == (True, False)


def test_what_is_to_embed_may_begin_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n' * 50 + b'{"caption": "late"}\n')
    source, _ = jsonl.plan_shards(Source(str(tmp_path), "jsonl"), 100, SETTINGS, sample_lines=10)
    assert (source.images, source.texts) == (False, True)


def test_integers_stay_what_they_were_and_nan_is_nothing(tmp_path: Path) -> None:
    big = 2**64
    (tmp_path / "a.jsonl").write_text(
        f'{{"id": {big}, "text": "a"}}\n{{"id": {big + 1}, "text": "b", "x": NaN, "deep": [{big}, -Infinity]}}\n'
        f'{{"id": {-(2**63)}, "text": "\\ud83d\\ude00 12345678901234567890", "deep": {{"n": {"9" * 5000}}}}}\n'
        '{"text": "\\ud83d"}\n'
    )
    found = read_all(*planned(tmp_path, "jsonl", 10), 10)
    assert [row.columns["id"] for row in found] == [str(big), str(big + 1), str(-(2**63)), None]
    assert found[1].columns["deep"] == f"[{big}, null]"
    assert found[1].columns["x"] is None
    assert found[2].text == "😀 12345678901234567890"
    assert "9" * 5000 in found[2].columns["deep"]
    assert "lone surrogate" in errors(found)[3]
