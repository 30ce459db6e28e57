"""Images that a table names: which values are references, where they lead, and how they are shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.shared.settings import Settings
from clip_queue.sources.image_references import NO_IMAGE, load, load_below, redacted

SETTINGS = Settings()


def test_bytes_are_the_image() -> None:
    assert load(b"x", "file", b"/", SETTINGS) == b"x"


@pytest.mark.parametrize(("value", "says"), [(None, NO_IMAGE), (" ", NO_IMAGE), (5, "is a int, no path and no URL")])
def test_a_value_that_names_no_image(value: object, says: str) -> None:
    with pytest.raises(BadImage, match=says):
        load(value, "file", b"/", SETTINGS)


@pytest.mark.parametrize(
    ("value", "says"),
    [("a\0b", "there is a NUL"), ("a\ud800b", "is no path"), ("file:///a\ud800b", "is no URL")],
)
def test_a_text_that_is_no_path(value: str, says: str) -> None:
    image = load(value, "file", b"/", SETTINGS)
    assert callable(image)
    with pytest.raises(BadImage, match=says):
        image()


def test_a_path_is_relative_to_its_table(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(b"here")
    memory.pipe("/t/i/a.jpg", b"there")
    for value, protocol, folder, data in (
        ("a.jpg", "file", os.fsencode(tmp_path), b"here"),
        (str(tmp_path / "a.jpg"), "memory", b"/t", FileNotFoundError),
        (f"file://{tmp_path}/a.jpg", "memory", b"/t", b"here"),
        ("../i/./a.jpg", "memory", b"/t/x", b"there"),
        ("memory://t/i/a.jpg", "file", b"/", b"there"),
    ):
        image = load(value, protocol, folder, SETTINGS)
        assert callable(image)
        if isinstance(data, bytes):
            assert image() == data
        else:
            with pytest.raises(data):
                image()


def test_a_path_beside_a_table_of_the_web_is_a_url() -> None:
    image = load("../a.jpg", "https", b"https://127.0.0.1/t", SETTINGS)
    assert callable(image)
    with pytest.raises(BadImage, match="fetch_allow_ip_hosts"):
        image()


def test_the_first_folder_that_has_the_image_wins(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(name.encode())
    folders = [os.fsencode(tmp_path / name) for name in ("x", "y")]
    assert load_below("y.jpg", "file", folders, SETTINGS) == b"y"
    assert load_below("x.jpg", "file", folders, SETTINGS) == b"x"
    with pytest.raises(FileNotFoundError):
        load_below("z.jpg", "file", folders, SETTINGS)
    with pytest.raises(FileNotFoundError, match=r"z\.jpg is in none of the tables' folders"):
        load_below("z.jpg", "file", [], SETTINGS)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a/b.jpg?x", "a/b.jpg?x"),
        (" https://user:word@host/a.jpg?signature=1#f", "https://host/a.jpg"),
        ("HTTP://host?signature=1", "HTTP://host"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
    ],
)
def test_a_url_is_shown_without_secrets(value: str, shown: str) -> None:
    assert redacted(value) == shown
