"""The setting ``search``: names and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.shared.searches import parse_searches
from clip_queue.shared.settings import Settings


def test_names_and_folders_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_SEARCH", "b=/x/y, a-1.2 = ~/z ,c=rel")
    found = parse_searches(Settings().search)
    assert list(found) == ["b", "a-1.2", "c"]
    assert found["b"] == Path("/x/y")
    assert found["a-1.2"] == Path.home() / "z"
    assert found["c"] == Path.cwd() / "rel"
    assert parse_searches([]) == {}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a"], "NAME=FOLDER"),
        (["a="], "NAME=FOLDER"),
        (["=/x"], "must be of letters"),
        (["../a=/x"], "must be of letters"),
        (["a b=/x"], "must be of letters"),
        (["a" * 65 + "=/x"], "must be of letters"),
        (["a=/x", "a=/y"], "twice"),
        (["a=s3://b/c"], "no URL"),
        (["a=~nobody-of-this-name/x"], "not known"),
    ],
)
def test_what_is_wrong_is_told(texts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_searches(texts)
