"""How a process begins: its settings are read and checked, and what is wrong is one line that names the setting."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import ValidationError
from pydantic_settings import SettingsError

from clip_queue.shared.fetch_policy import Policy
from clip_queue.shared.models import parse_aliases, parse_models
from clip_queue.shared.redis_url import check_redis_url
from clip_queue.shared.searches import parse_searches
from clip_queue.shared.settings import LOG_LEVELS, Settings, get_settings

PREFIX = "CLIP_QUEUE_"
CANNOT_WORK = 78  # exit code of a process that no restart can help (EX_CONFIG of sysexits.h)
CHECKED = f"{PREFIX}CHECKED"  # set for children, whose parent has warned already
# Names with the prefix that are no settings: of the children above, of clients, of docker-compose.yml, of bench/ and
# tests/.
OTHERS = frozenset(
    PREFIX + name
    for name in (
        *("CHECKED", "URL", "API_KEY", "PUBLISH", "MAXMEMORY"),
        *("SDK_PYTHON", "CLIENTS_PYTHON", "RETRIEVAL_PYTHON", "PEERS_PYTHON", "TEST_FAULTS"),
    )
)
ALIKE = 0.85  # least likeness to a known name of a name whose prefix is misspelt
POLICY = ("fetch_allow_networks", "fetch_allow_hosts", "fetch_deny_hosts")
DOTENV = Path(".env")
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")  # as a browser sends it: without a path


class CannotWork(Exception):
    """A process cannot work with its settings. The message names what is wrong, without a secret."""


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def load(read: Any = Settings, names: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """The settings, read and checked.

    Args:
        read: makes them.
        names: what the user calls a setting that was given otherwise than by its variable.
        given: values that go before those of the environment.

    Raises:
        CannotWork: with one line of all that is wrong.
    """
    try:
        _check_dotenv()
        settings: Settings = read(**given)
        wrong = dict(problems(settings))
    except ValidationError as error:  # its own text would show the values, also of keys
        wrong = {str(e["loc"][0]) if e["loc"] else "": e["msg"].removeprefix("Value error, ") for e in error.errors()}
    except UnicodeDecodeError:
        raise CannotWork(f"the file {DOTENV.absolute()} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise CannotWork(f"the file {DOTENV.absolute()} cannot be read ({error.strerror})") from None
    except SettingsError as error:
        raise CannotWork(f"wrong settings: {error}") from None
    if wrong:
        called = {**{name: variable(name) for name in wrong}, **(names or {})}
        raise CannotWork("wrong settings: " + "; ".join(f"{called[name]}: {why}" for name, why in wrong.items()))
    return settings


def problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """What is wrong with values of the right type: the setting, and why."""
    try:
        check_redis_url(settings.redis_url.get_secret_value())
    except ValueError as error:
        yield "redis_url", str(error)
    try:
        parse_models(settings.models)
    except ValueError as error:
        yield "models", str(error)
    try:
        parse_aliases(settings.model_aliases)
    except ValueError as error:
        yield "model_aliases", str(error)
    try:
        parse_searches(settings.search)
    except ValueError as error:
        yield "search", str(error)
    for origin in settings.cors_origins:
        if not ORIGIN.fullmatch(origin):
            yield "cors_origins", f"{origin[:80]!r} is not an origin, as in https://app.example.org, or *"
    if settings.log_level.upper() not in LOG_LEVELS:
        yield "log_level", f"use one of {', '.join(LOG_LEVELS)}"
    blank: dict[str, list[str]] = {name: [] for name in POLICY}
    for name in POLICY:
        for value in getattr(settings, name):
            try:
                Policy(settings.model_copy(update={**blank, name: [value]}))
            except ValueError:
                form = "a network, as in 10.0.0.0/8" if "networks" in name else "a host, as in example.org"
                yield name, f"{value[:80]!r} is not {form}"


def of_process(program: str) -> Settings:
    """The settings of a process of its own. Warns on stderr of misspelt names, once.

    Args:
        program: how the process is called in a message.

    Ends the process with exit code 78 and one line on stderr if they are wrong.
    """
    warn()
    try:
        return load(get_settings)
    except CannotWork as error:
        stop(program, error)


def warn_of_a_clients_key(settings: Settings) -> None:
    """Print a line on stderr if there is a key for clients to send, and none that this service would ask for."""
    name = f"{PREFIX}API_KEY"
    if not settings.api_keys and name in (*os.environ, *_dotenv()):
        print(
            f"clip-queue: {name} is what a client sends; this service asks for no key: those that it accepts are "
            f"{name}S",
            file=sys.stderr,
            flush=True,
        )


def stop(program: str, error: Exception) -> NoReturn:
    """End the process with one line."""
    print(f"{program}: {error}", file=sys.stderr, flush=True)
    sys.exit(CANNOT_WORK)


def warn() -> None:
    """Print a line on stderr about each variable that looks like a setting and is none."""
    if CHECKED in os.environ:
        return
    for line in misspelt(os.environ, _dotenv()):
        print(f"clip-queue: {line}", file=sys.stderr, flush=True)


def misspelt(environment: Mapping[str, Any], dotenv: Mapping[str, Any]) -> list[str]:
    """A line about each name in the environment or in the file ``.env`` that looks like a setting and is none."""
    known = {variable(name) for name in Settings.model_fields} | OTHERS
    lines = []
    for name in dict.fromkeys((*environment, *dotenv)):
        upper = name.upper()
        if upper in known or not upper.startswith("CLIP"):
            continue
        ours = upper.startswith(PREFIX)
        near = difflib.get_close_matches(upper, sorted(known - OTHERS), 1, 0.6 if ours else ALIKE)
        if not ours and not near:
            continue
        where = "" if name in environment else f", in {DOTENV.absolute()},"
        meant = f"did you mean {near[0]}?" if near else "docs/settings.md lists them"
        lines.append(f"{name[:80]}{where} is no setting and does nothing: {meant}")
    return lines


def _check_dotenv() -> None:
    """Raise :class:`CannotWork` for a line of the file ``.env`` that is meant for us and sets nothing.

    What reads the file passes over such a line: keys on it would leave the service open.
    """
    if not DOTENV.is_file():
        return
    with DOTENV.open(encoding="utf-8-sig") as lines:
        for binding in parse_stream(lines):
            text = binding.original.string
            if (binding.error or (binding.key and binding.value is None)) and PREFIX in text.upper():
                at = binding.original.line + len(text) - len(text.lstrip("\n"))
                raise CannotWork(
                    f"the file {DOTENV.absolute()} has no NAME=value in line {at}: quotes stand around the whole value"
                )


def _dotenv() -> Mapping[str, Any]:
    try:
        return dotenv_values(DOTENV, encoding="utf-8-sig", interpolate=False) if DOTENV.is_file() else {}
    except (OSError, ValueError):  # said where the settings are read
        return {}
