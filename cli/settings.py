"""The settings of a command: those of its options, else those of the environment."""

from __future__ import annotations

from typing import Any

from clip_queue.cli.terminal import fail
from clip_queue.shared import startup
from clip_queue.shared.settings import Settings

OPTIONS = {"models": "--model", "redis_url": "--redis", "data_dir": "--data-dir"}  # that have other names than settings


def load_settings(**given: Any) -> Settings:
    """The settings; None is an option that was not given. Ends the command if they are wrong."""
    chosen = {name: value for name, value in given.items() if value is not None}
    startup.warn()
    try:
        return startup.load(names={name: option(name) for name in chosen}, **chosen)
    except startup.CannotWork as error:
        fail(str(error))


def as_typed(message: str, **given: Any) -> str:
    """A message in which each setting that was given as an option has the option's name."""
    for name, value in given.items():
        if value is not None:
            typed = option(name)
            message = message.replace(f"{typed} or {startup.variable(name)}", typed)
            message = message.replace(startup.variable(name), typed)
    return message


def option(name: str) -> str:
    """The option of a setting."""
    return OPTIONS.get(name, f"--{name.replace('_', '-')}")
