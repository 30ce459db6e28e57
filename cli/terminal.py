"""Printing on a terminal."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

console = Console()
errors = Console(stderr=True)


def print_line(console: Console, line: str) -> None:
    """Print a line of rich's markup. It is not wrapped, so that a path or a command in it can be copied."""
    console.print(line, soft_wrap=True, highlight=False)


def printable(text: str) -> str:
    """The text on one line, with all control characters escaped. Names and captions can contain any characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_error(message: str) -> None:
    """Print an error on stderr."""
    print_line(errors, f"[bold red]clip-queue:[/] {escape(message)}")


def fail(message: str) -> NoReturn:
    """Print the error and end with exit code 1."""
    print_error(message)
    raise typer.Exit(1)
