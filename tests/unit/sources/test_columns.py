"""A source's own columns: names, inferred types, values made to fit, and which hold images and texts."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_queue.shared.errors import BadInput
from clip_queue.sources.columns import EXTRA, MAX_COLUMNS, as_json, choose, conform, infer, own_name
from clip_queue.sources.formats.table import text_of
from clip_queue.sources.source import Source, SourceError

SCALAR = st.sampled_from([None, True, 0, -1, 2**63 - 1, 2**63, -(2**70), 1.5, 1e300, "", "text", "é\ud800", b"\xff"])
JSON = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(st.sampled_from(["a", "\ud800"]), SCALAR, max_size=2)
ROW = st.dictionaries(st.sampled_from(["a", "b", "caption", "extra", "source_extra", "é", "\ud800"]), JSON)


def test_names_that_the_metadata_has_are_renamed_and_none_become_one() -> None:
    names = ["a", "image_path", "caption", "error", "extra", "source_caption", "source_source_caption", "Caption"]
    assert [own_name(name) for name in names] == [
        "a",
        "source_image_path",
        "source_caption",
        "source_error",
        "source_extra",
        "source_source_caption",
        "source_source_source_caption",
        "Caption",
    ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None, False], "bool"),
        ([1, 2, None], "int64"),
        ([1, 2.5], "double"),
        (["a"], "string"),
        ([None], "string"),
        ([True, 1], "string"),
        ([1, "a"], "string"),
        ([[1]], "string"),
        ([{"a": 1}], "string"),
        ([2**63], "string"),
        ([-(2**63)], "int64"),
    ],
)
def test_types(values: list[Any], kind: str) -> None:
    assert infer({"x": value} for value in values) == {"x": kind, "extra": "string"}


def test_columns_come_in_order_of_first_sight_and_not_without_end() -> None:
    assert list(infer([{"b": 1, "error": 2}, {"a": 1, "b": 2}])) == ["b", "source_error", "a", "extra"]
    columns = infer({str(n): n} for n in range(10 * MAX_COLUMNS))
    assert len(columns) == MAX_COLUMNS + 1
    assert conform({"0": 0, str(MAX_COLUMNS): 1}, columns)["extra"] == f'{{"{MAX_COLUMNS}":1}}'


def test_values_are_made_to_fit() -> None:
    columns = {"i": "int64", "f": "double", "b": "bool", "s": "string", "source_error": "string", "extra": "string"}
    none = dict.fromkeys(columns)
    assert conform({}, columns) == none
    fits = {"i": 1, "f": 2, "b": True, "s": "text", "error": "e"}
    assert conform(fits, columns) == {"i": 1, "f": 2.0, "b": True, "s": "text", "source_error": "e", "extra": None}
    assert conform({"s": [1, "é"], "i": None}, columns) == {**none, "s": '[1,"é"]'}
    misfits = {"i": 1.5, "f": "x", "b": 1, "new": [1], "none": None}
    assert conform(misfits, columns) == {**none, "extra": '{"i":1.5,"f":"x","b":1,"new":[1]}'}
    assert conform(misfits, {"i": "int64"}) == {"i": None}


@given(st.lists(ROW, max_size=5), st.lists(ROW, max_size=5))
def test_whatever_comes_arrow_takes_it(sample: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    columns = infer(sample)
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    made = [conform(row, columns) for row in sample + more]
    assert all(list(row) == list(columns) for row in made)
    assert pa.Table.from_pylist(made, schema=schema).num_rows == len(made)
    assert all(row[EXTRA] is None for row in made[: len(sample)])


def test_json_of_what_has_no_json() -> None:
    assert as_json({"a": b"x\xff", 1: {2}}) == '{"a":"x\\\\xff","1":"{2}"}'
    assert as_json({"n": 2**70}) == f'{{"n": {2**70}}}'
    assert json.loads(as_json(["\ud800"]) or "") == ["\ud800"]
    mixed = {"a": math.nan, "b": [math.inf, 2**70, (math.nan,)], "c": 1.5}
    assert json.loads(as_json(mixed) or "", parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 2**70, [None]],
        "c": 1.5,
    }
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert as_json(deep) is None


def chosen(*columns: str, typed: str | None = None, **asked: Any) -> tuple[str | None, str | None]:
    source = choose(Source("x", "parquet", **asked), columns, columns, columns, typed=typed)
    assert (source.images, source.texts) == (source.image_column is not None, source.text_column is not None)
    return source.image_column, source.text_column


def test_the_likeliest_columns_are_chosen() -> None:
    assert chosen("url", "PATH", "Jpg", "title", "TEXT") == ("Jpg", "TEXT")
    assert chosen("url", "PATH", "odd", typed="odd") == ("odd", None)
    assert chosen("odd", "image", typed="odd") == ("image", None)
    assert chosen("url", "path") == ("path", None)
    assert chosen("image", " Caption ") == ("image", " Caption "), "a blank after a comma belongs to no name"
    assert chosen("images", "captions") == ("images", "captions")
    assert chosen("caption", "captions") == (None, "caption")
    assert chosen("url", "image_url") == ("image_url", None), "a page's URL may stand beside its image's"
    assert chosen("url", "path", image_column="url") == ("url", None)
    assert chosen("path", "url", text_column="path") == ("url", "path")
    assert chosen("path", "text", images=False) == (None, "text")
    assert chosen("path", "text", texts=False) == ("path", None)
    with pytest.raises(SourceError, match=r"no image column 'b'; the columns are: a$"):
        chosen("a", image_column="b")
    with pytest.raises(SourceError, match=r"nothing to embed: .* Name one of: a, b"):
        chosen("a", "b")
    with pytest.raises(SourceError, match="no column looks like images"):
        chosen("a", "text", images=True)
    with pytest.raises(SourceError, match="holds none to be read"):
        chosen("a", image_column="a", text_column="a")


def test_a_column_that_holds_nothing_is_named() -> None:
    with pytest.raises(
        SourceError, match="column 'caption' holds no text that can be read; name one of: image, caption"
    ):
        choose(Source("x", "csv", texts=True), ["image", "caption"], ["image"], ["image"])


def test_of_several_captions_the_first_that_says_something_is_taken() -> None:
    assert text_of([None, "", "  ", "a dog", "b"]) == "a dog"
    assert text_of([None]) is None
    with pytest.raises(BadInput, match="is a int, no text"):
        text_of([None, 5, "a dog"])
