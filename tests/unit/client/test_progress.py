"""A bar on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys

import pytest

from clip_queue.client.progress import bar

from .conftest import Made


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on standard error claims to be a terminal. (A fixture would change what pytest puts there before.)"""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")


def test_a_long_call_shows_how_far_it_is(
    make: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch)
    face = make()
    face.do(face.client.embed_images, [b"x"] * 30 + [None], on_error="skip")
    shown = capsys.readouterr().err
    assert "images" in shown
    assert "31/31" in shown, "also those that were never sent"


def test_a_short_one_does_not(make: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch)
    face = make()
    face.do(face.client.embed_images, [b"x"] * 8)
    face.do(face.client.embed_images, iter([b"x"] * 20))
    quiet = make(progress=False)
    quiet.do(quiet.client.embed_images, [b"x"] * 30)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_is_none(make: Made, capsys: pytest.CaptureFixture[str]) -> None:
    face = make()
    face.do(face.client.embed_images, [b"x"] * 30)
    assert capsys.readouterr() == ("", "")


def test_without_rich_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch)
    for name in ("rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    with bar([1, 2], 1, "items", True) as advanced:
        advanced(2)
    assert capsys.readouterr() == ("", "")
