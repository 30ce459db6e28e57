"""The processes that search for this process: each does one thing at a time, and one that overstays is ended.

A search reads files: vectors, metadata, pictures, perhaps on a slow disk or in a broken container. Neither the event
loop nor a thread could be freed of that; a process can be killed. It imports no torch, has no keys, and reads what
``clip_queue.bulk.search.service`` says. It is run by its name: this layer does not import that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from clip_queue.shared.errors import ClipError, Late, Unavailable
from clip_queue.shared.searches import (
    HEAD,
    SearchFull,
    UnknownSearch,
    parse_searches,
)
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CannotWork, variable

PROGRAM = (sys.executable, "-m", "clip_queue.bulk.search.service")
MAX_WAITING = 64  # searches and pictures that wait for a process, in an API process
START_TIMEOUT = 60.0  # seconds that a process may take to start and to open the outputs
END_TIMEOUT = 5.0  # seconds until a killed process has ended; one that the kernel holds longer is left to it
LIST_AGE = 2.0  # seconds that the list of outputs is used again
SECRETS = ("api_keys", "redis_url")  # settings that a process does not need

Answer = tuple[dict[str, Any], bytes]
Listed = list[dict[str, Any]]


class Searches:
    """The outputs of the setting ``search``, and the processes that search them, started when they are needed."""

    def __init__(self, settings: Settings, *, command: tuple[str, ...] = PROGRAM) -> None:
        self.names = tuple(parse_searches(settings.search))
        self._timeout = settings.search_timeout
        self._waiting = 0
        self._processes = [_Process(command, settings) for _ in range(settings.search_processes)]
        self._idle: asyncio.LifoQueue[_Process] = asyncio.LifoQueue()
        for process in reversed(self._processes):
            self._idle.put_nowait(process)
        self._listed: list[dict[str, Any]] = []
        self._listed_at = -float("inf")
        self._look: asyncio.Task[list[dict[str, Any]]] | None = None

    def check(self, name: str) -> None:
        """Raise :class:`UnknownSearch` if there is no such search."""
        if name not in self.names:
            raise UnknownSearch(f"There is no search of that name; there are: {', '.join(self.names) or 'none'}.")

    async def list(self) -> list[dict[str, Any]]:
        """Each output's ``name``, ``model``, ``fingerprint``, ``rows``, ``among`` and ``problem``, in the order of the
        setting. Never fails: what cannot be asked now is told as it was last, and is at most 2 s old otherwise."""
        if self.names and time.monotonic() - self._listed_at > LIST_AGE:
            try:
                answer, _ = await self.ask("list")
                self._listed, self._listed_at = answer["searches"], time.monotonic()
            except ClipError as error:
                return self._last(error.message)
        return self._listed

    async def glance(self, patience: float) -> Listed:
        """:meth:`list` for who cannot wait: after ``patience`` seconds what it said last. There is one look at a time,
        so that who looks often takes no place from those who search."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self.list(), name="look at the searches")
        done, _ = await asyncio.wait({self._look}, timeout=patience)
        return self._look.result() if done else self._last("It is being opened.")

    def _last(self, problem: str) -> Listed:
        unknown = {"model": None, "fingerprint": None, "rows": 0, "among": None, "problem": problem}
        return self._listed or [{"name": name, **unknown} for name in self.names]

    async def ask(self, what: str, **arguments: Any) -> Answer:
        """What a process answers: a dictionary, and bytes.

        Raises:
            SearchFull: too many wait for a process, or none became free in time.
            Late: it took longer than ``search_timeout``.
            Unavailable: the process ended, or cannot be started, or cannot read the output.
            ClipError: what it says.
        """
        full = "Too many searches are under way (setting search_processes); try again."
        if self._waiting >= MAX_WAITING:
            raise SearchFull(full, retry_after=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                process = await self._idle.get()
        except TimeoutError:
            raise SearchFull(full, retry_after=1) from None
        finally:
            self._waiting -= 1
        try:
            answer, data = await process.ask(what, arguments, self._timeout)
        finally:
            self._idle.put_nowait(process)
        if "error" in answer:
            error = ClipError.from_wire(answer["error"])
            error.retry_after = answer.get("retry_after")
            raise error
        return answer, data

    async def close(self) -> None:
        """End the processes."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look}, timeout=END_TIMEOUT)
        for process in self._processes:
            await process.close()


class _Process:
    """One process, started anew when it has ended."""

    def __init__(self, command: tuple[str, ...], settings: Settings) -> None:
        self._command, self._settings = command, settings
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    async def ask(self, what: str, arguments: dict[str, Any], timeout: float) -> Answer:
        """Raises :class:`Late` and :class:`Unavailable`."""
        try:
            if self._process is None or self._process.returncode is not None:
                await self._start()
            async with asyncio.timeout(timeout):
                return await self._exchange(what, arguments)
        except TimeoutError:
            await self.end()
            raise Late(f"It took longer than {timeout:g} s (setting search_timeout).") from None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            await self.end()
            raise Unavailable(
                f"The process that searches has ended ({type(error).__name__}); try again.", retry_after=1
            ) from error
        except BaseException:  # nobody waits for the answer any more: the next one would get it
            await self.end()
            raise

    async def _start(self) -> None:
        if self._closed:
            raise Unavailable("This process is stopping.", retry_after=1)
        pipe = subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, env=environment(self._settings)
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):  # opening large outputs is no search's time
                await self._exchange("list", {})
        except TimeoutError:
            await self.end()
            raise Unavailable("The outputs could not be opened in time; try again.", retry_after=5) from None

    async def _exchange(self, what: str, arguments: dict[str, Any]) -> Answer:
        process = self._process
        assert process
        assert process.stdin
        assert process.stdout
        message = msgpack.packb([what, arguments])
        process.stdin.write(HEAD.pack(len(message)) + message)
        await process.stdin.drain()
        (size,) = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
        answer, data = msgpack.unpackb(await process.stdout.readexactly(size))
        return answer, data

    async def end(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await process.wait()

    async def close(self) -> None:
        self._closed = True
        await self.end()


def check(settings: Settings) -> None:
    """Have the outputs opened once, before the service starts. Raises :class:`CannotWork` with what is wrong."""
    if not settings.search:
        return
    try:
        done = subprocess.run(
            (*PROGRAM, "--check"),
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return  # large ones on a slow disk: it is seen what comes of them
    except OSError as error:
        raise CannotWork(f"{variable('search')}: no process can be started ({error.strerror})") from None
    if done.returncode:
        raise CannotWork(
            done.stderr.strip().rpartition("\n")[2] or f"{variable('search')}: the outputs cannot be opened"
        )


def environment(settings: Settings) -> dict[str, str]:
    """A process's environment: the settings that are no secrets, and where the package is found."""
    secrets = {variable(name) for name in SECRETS}  # settings may be written in any case
    own = {name: value for name, value in {**os.environ, **settings.env()}.items() if name.upper() not in secrets}
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, own.get("PYTHONPATH"))))
    return own | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
