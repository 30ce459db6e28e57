"""The options of ``clip-queue up``: what they are understood as, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from clip_queue.cli import up as up_module
from clip_queue.cli.main import app
from clip_queue.cli.serving import BadSplit, split

LOCAL = "mine=local-dir:/a/b"


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("emoji-mini", ["emoji-mini"]),
        ("ViT-B-16:2,ViT-L-14:1", ["ViT-B-16", "ViT-B-16", "ViT-L-14"]),
        (" ViT-B-16 , ViT-L-14:2 ", ["ViT-B-16", "ViT-L-14", "ViT-L-14"]),
        (f"{LOCAL}:2", [LOCAL, LOCAL]),
        (LOCAL, [LOCAL]),
        ("ViT-B-16:64", ["ViT-B-16"] * 64),
    ],
)
def test_a_split_names_the_model_of_each_worker(text: str, models: list[str]) -> None:
    assert split(text) == models


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not understood"),
        ("ViT-B-16:0", "is not understood"),
        ("ViT-B-16,,RN50", "is not understood"),
        ("ViT-B-16:60,RN50:5", "at most 64 workers"),
        ("ViT-B-16:two", "unknown model 'ViT-B-16:two'"),
        ("nothing:2", "unknown model 'nothing'"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadSplit, match=words):
        split(text)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command would have started."""
    calls: list[dict[str, Any]] = []

    def up(console: object, errors: object, settings: Any, **given: Any) -> None:
        calls.append({"settings": settings, **given})

    monkeypatch.setattr(up_module, "up", up)
    return calls


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["up", *arguments], env={"COLUMNS": "200"})


def test_options_are_settings(started: list[dict[str, Any]]) -> None:
    options = ["--device", "cpu", "--precision", "fp32", "--batch-size", "7", "--log-level", "warning"]
    assert run(*options, "--workers", "3", "--model", "RN50").exit_code == 0
    (call,) = started
    settings = call["settings"]
    assert (settings.device, settings.precision, settings.batch_size) == ("cpu", "fp32", 7)
    assert (settings.log_level.upper(), settings.models) == ("WARNING", ["RN50"])
    assert (call["workers"], call["serves"]) == (3, None)


def test_each_worker_may_have_a_model_of_its_own(started: list[dict[str, Any]]) -> None:
    assert run("--serve", "RN50:2,emoji-mini").exit_code == 0
    (call,) = started
    assert (call["serves"], call["settings"].models) == (["RN50", "RN50", "emoji-mini"], ["RN50", "emoji-mini"])


def test_the_number_of_workers_may_be_left_to_the_machine(started: list[dict[str, Any]]) -> None:
    assert run("--workers", "auto").exit_code == run().exit_code == 0
    assert [call["workers"] for call in started] == [None, None]


def test_so_may_that_of_api_processes(started: list[dict[str, Any]]) -> None:
    assert run("--api-processes", "auto").exit_code == run().exit_code == run("--api-processes", "3").exit_code == 0
    assert [call["apis"] for call in started] == [None, None, 3]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--workers", "0"], 2, "'0' is neither 'auto' nor a number from 1 to 64."),
        (["--workers", "many"], 2, "'many' is neither"),
        (["--api-processes", "0"], 2, "'0' is neither 'auto' nor a number from 1 to 64."),
        (["--serve", "RN50", "--workers", "2"], 1, "give it, or --model and --workers"),
        (["--serve", "RN50", "--model", "RN50"], 1, "give it, or --model and --workers"),
        (["--serve", "x"], 1, "--serve: unknown model 'x'"),
        (["--batch-size", "-3"], 1, "--batch-size: Input should be greater than or equal to 0"),
        (["--precision", "int4"], 1, "--precision"),
        (["--log-level", "chatty"], 1, "--log-level: use one of DEBUG"),
    ],
)
def test_what_makes_no_sense_is_refused(
    started: list[dict[str, Any]], arguments: list[str], status: int, words: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, started) == (status, [])
    assert words in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands(shell: str) -> None:
    script = CliRunner().invoke(app, [], prog_name="clip-queue", env={"_CLIP_QUEUE_COMPLETE": f"source_{shell}"})
    assert script.exit_code == 0
    assert "_CLIP_QUEUE_COMPLETE" in script.stdout
