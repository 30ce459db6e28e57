"""The program that searches for an API process: one request after the other, until its standard input ends.

An API process starts some of these (:mod:`clip_queue.api.search_processes`): so no search, no picture from a slow disk
and no broken file holds up its event loop, and what overstays its time is ended. With ``--check`` it only opens the
outputs of the settings and says on standard error what is wrong with one.

A message, either way, is :data:`HEAD` and msgpack: ``[what, arguments]`` is answered by ``[answer, bytes]``, and an
error by ``[{"error": …}, b""]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from clip_queue.shared.errors import ClipError, Unavailable
from clip_queue.shared.models import ModelInfo, parse_models
from clip_queue.shared.searches import HEAD, UnknownSearch, parse_searches
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CANNOT_WORK

log = logging.getLogger(__name__)

NICE = 5  # behind the event loop and the worker, where they share a core
MISSING = "search needs packages that are not installed here ({}): pip install 'clip-queue[outputs]'"


def main() -> None:
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type] # seconds and 200 MB, for what numpy does as well
    settings = Settings(_env_file=None)  # `.env` may have keys; all else is in the environment
    if "--check" in sys.argv:
        try:
            check(settings)
        except ClipError as error:
            print(f"CLIP_QUEUE_SEARCH: {error.message}", file=sys.stderr)
            sys.exit(CANNOT_WORK)
        return
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the API
    with contextlib.suppress(OSError):
        os.nice(NICE)
    try:
        serve(settings, sys.stdin.buffer, replies)
    except BrokenPipeError:
        os._exit(0)  # the API has ended, and Python would complain of what it cannot flush


def check(settings: Settings) -> None:
    """Open each output once. Raises :class:`Unavailable` with what is wrong, for the reader of the settings."""
    for name, folder in parse_searches(settings.search).items():
        try:
            found = _opened(folder, settings)
            about = found.about()
        except (ClipError, OSError) as error:
            raise Unavailable(f"{name}: {error.message if isinstance(error, ClipError) else error}") from error
        check_model(name, found.model, settings)
        if about["problem"]:
            log.warning("search %s: %s", name, about["problem"])


def check_model(name: str, model: ModelInfo | None, settings: Settings) -> None:
    """Raise :class:`Unavailable` if no model of the settings can be the one that made an output's vectors."""
    served = parse_models(settings.models)
    if model is None or model.name in served or any(spec.source == model.source for spec in served.values()):
        return
    raise Unavailable(
        f"{name}: its vectors are of {model.name} ({model.source}), and CLIP_QUEUE_MODELS serves only "
        f"{', '.join(served)}: serve that model as well"
    )


def serve(settings: Settings, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""
    outputs = _Outputs(settings)
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        what, arguments = msgpack.unpackb(requests.read(HEAD.unpack(head)[0]))
        try:
            answer, data = outputs.answer(what, arguments)
        except ClipError as error:
            answer, data = {"error": error.to_wire(), "retry_after": error.retry_after}, b""
        except OSError as error:  # a folder that is gone, a disk that fails
            log.warning("an output cannot be read: %s", error)
            reason = error.strerror or type(error).__name__
            answer, data = {"error": Unavailable(f"The output cannot be read ({reason}).").to_wire()}, b""
        except Exception:
            log.exception("a search failed")
            answer, data = {"error": ClipError("Internal error; the server's log has the details.").to_wire()}, b""
        message = msgpack.packb([answer, data])
        replies.write(HEAD.pack(len(message)) + message)
        replies.flush()


class _Outputs:
    """The outputs of the settings, each opened when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folders = parse_searches(settings.search)
        self._opened: dict[str, Any] = {}

    def answer(self, what: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Raises :class:`ClipError` and :class:`OSError`."""
        if what == "list":
            return {"searches": [self._about(name) for name in self._folders]}, b""
        output = self._get(arguments["name"])
        found: tuple[dict[str, Any], bytes]
        if what == "picture":
            found = output.picture(arguments["row"])
        else:
            query = arguments.get("row")
            if query is None:
                query = np.frombuffer(arguments["vector"], dtype="<f4")
            found = output.page(query, arguments["offset"], arguments["limit"], arguments.get("fingerprint"))
        return found

    def _about(self, name: str) -> dict[str, Any]:
        try:
            return {"name": name, **self._get(name).about()}
        except (ClipError, OSError) as error:
            problem = error.message if isinstance(error, ClipError) else error.strerror or type(error).__name__
            return {"name": name, "model": None, "fingerprint": None, "rows": 0, "among": None, "problem": problem}

    def _get(self, name: str) -> Any:
        if name not in self._folders:
            raise UnknownSearch(f"There is no search of that name; there are: {', '.join(self._folders) or 'none'}.")
        if name not in self._opened:
            try:
                self._opened[name] = _opened(self._folders[name], self._settings)
            except ClipError as error:
                raise Unavailable(f"The output cannot be searched now: {error.message}.", retry_after=5) from error
        return self._opened[name]


def _opened(folder: Path, settings: Settings) -> Any:
    try:
        from clip_queue.bulk.search.served import ServedOutput
    except ModuleNotFoundError as error:
        raise Unavailable(MISSING.format(error.name)) from error
    return ServedOutput(folder, settings)


if __name__ == "__main__":
    main()
