"""Pictures by URL for the threads that read them, with every guard and limit that the API has.

One event loop in one thread serves them all: addresses are checked in one place (:mod:`clip_queue.shared.fetch`), and
``fetch_concurrency`` holds for the process.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.fetch import UNREACHABLE, Fetcher
from clip_queue.shared.settings import Settings, get_settings
from clip_queue.sources.source import SourceError

GRACE = 5.0  # seconds beyond what fetching itself may take


class _Loop:
    """The loop, its thread and its fetcher."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fetcher = Fetcher(settings)
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()  # not in a process that was forked from this one

    def submit(self, url: str) -> tuple[Future[bytes], float]:
        """The body to be, and how long that may take: those before it have their turn first."""
        with self._lock:
            rounds = 1 + self._waiting // self._settings.fetch_concurrency
            self._waiting += 1
        future = asyncio.run_coroutine_threadsafe(self._fetcher.get(url), self._loop)
        future.add_done_callback(self._done)
        return future, (rounds + 1) * self._settings.fetch_timeout + GRACE

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _done(self, _: Future[bytes]) -> None:
        with self._lock:
            self._waiting -= 1

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels what is left
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._ended.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._fetcher.aclose()


_lock = threading.Lock()
_running: _Loop | None = None


def get(url: str) -> bytes:
    """The body that a URL leads to; blocks, for as long as the settings ``fetch_*`` allow. For many threads.

    Raises:
        BadImage: the URL is refused, leads to nothing, or to too much.
        SourceError: nothing can be fetched with these settings.
    """
    global _running
    with _lock:
        if _running is None or not _running.alive:
            _running = _begun()
        future, timeout = _running.submit(url.strip())
    try:
        return future.result(timeout)
    except ClipError:
        raise
    except Exception:  # too late, or ended by close()
        future.cancel()
        raise BadImage.because(UNREACHABLE) from None  # the cause's text may quote the URL


def _begun() -> _Loop:
    try:
        return _Loop(get_settings())
    except (OSError, ValueError) as error:  # no such file of authorities; no host, no network
        raise SourceError(f"no URL can be fetched: a setting fetch_*, or SSL_CERT_FILE, is wrong ({error})") from None


def close() -> None:
    """End the thread and what it fetches; the next :func:`get` begins anew."""
    global _running
    with _lock:
        running, _running = _running, None
        if running is not None and running.alive:
            running.stop()
