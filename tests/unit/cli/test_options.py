"""Flags of a command that are made from descriptions of options."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from clip_queue.bulk.run.options import Option
from clip_queue.cli.options import with_options

OPTIONS: dict[str, tuple[Any, Option]] = {
    "some_name": (str | None, Option("A word. [default: cat]")),
    "size": (int | None, Option("A number.", least=1, most=9)),
    "raw": (bool | None, Option("A switch.", flags="--cooked/--raw")),
}


def called(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a command with these options, and the keywords that it got."""
    got: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @with_options(OPTIONS)
    def command(place: Annotated[str, typer.Argument()], own: bool = False, **options: Any) -> None:
        got.update(options, place=place, own=own)

    return CliRunner().invoke(app, list(arguments)).exit_code, got


def test_the_help_text_is_shown_as_it_is() -> None:
    app = typer.Typer()

    @app.command()
    @with_options(OPTIONS)
    def command(**options: Any) -> None:
        """A command."""

    helped = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "A word. [default: cat]" in helped


def test_the_command_gets_every_option_and_none_for_those_that_were_not_given() -> None:
    assert called("here") == (0, {"place": "here", "own": False, "some_name": None, "size": None, "raw": None})


def test_values_have_the_types_of_their_options() -> None:
    status, got = called("here", "--some-name", "7", "--size", "7", "--raw", "--own")
    assert (status, got) == (0, {"place": "here", "own": True, "some_name": "7", "size": 7, "raw": False})
    assert called("here", "--cooked")[1]["raw"] is True


def test_a_number_outside_its_limits_is_a_usage_error() -> None:
    for size in ("0", "10", "many"):
        assert called("here", "--size", size) == (2, {})
