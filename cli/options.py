"""Flags of a command from descriptions of options: an option and its help text are written only once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape

from clip_queue.bulk.run.options import Option

Command = TypeVar("Command", bound=Callable[..., Any])


def with_options(options: Mapping[str, tuple[Any, Option]]) -> Callable[[Command], Command]:
    """A decorator that adds a flag for each option to a command.

    The command must accept ``**options``. It gets a keyword for each option, with None if the flag was not given.

    Args:
        options: type and description of each option, by name.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        flags = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, _flag(name, option)]
            )
            for name, (kind, option) in options.items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
        return command

    return decorate


def _flag(name: str, option: Option) -> Any:
    flag = option.flags or f"--{name.replace('_', '-')}"
    help = escape(option.help)  # typer reads it as rich's markup, where "[default: …]" would be a style
    return typer.Option(flag, help=help, min=option.least, max=option.most, show_default=False)
