"""Flags of a command that are described elsewhere: an option is spelt once, where it is explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from clip_queue.bulk.run.options import Option

Command = TypeVar("Command", bound=Callable[..., Any])


def with_options(options: Mapping[str, tuple[Any, Option]]) -> Callable[[Command], Command]:
    """Give a command a flag for each option: the command gets all of them as keywords, None where one was not given."""

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
    return typer.Option(flag, help=option.help, min=option.least, max=option.most, show_default=False)
