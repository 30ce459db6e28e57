"""Images by URL for the threads that read them, under every rule and limit that the API has.

One event loop in one thread fetches for all threads that have the same settings. So addresses are checked in one place
(:mod:`clip_queue.shared.fetch`), and ``fetch_concurrency`` holds for the process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.fetch import UNREACHABLE, Fetcher
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import SourceError

log = logging.getLogger(__name__)

THREAD = "url-fetcher"  # the threads' name
GRACE = 5.0  # seconds beyond what fetching itself may take
STOP_TIMEOUT = 10.0  # seconds that a thread has to end
MAX_FETCHERS = 4  # fetchers, each of other settings, that are kept


class UrlFetcher:
    """Fetches URLs for any number of threads, in a thread of its own."""

    def __init__(self, settings: Settings, *, grace: float = GRACE) -> None:
        """Start the thread. ``grace``: seconds that an answer may come late, beyond what ``fetch_timeout`` allows.

        Raises:
            SourceError: nothing can be fetched with these settings.
        """
        self._settings, self._grace = settings, grace
        try:
            self._fetcher = Fetcher(settings)
        except (OSError, ValueError) as error:  # no such file of authorities; no host, no network
            cause = f"a setting fetch_*, or SSL_CERT_FILE, is wrong ({error})"
            raise SourceError(f"no URL can be fetched: {cause}") from None
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._waiting = 0
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; it does not in a process that was forked from this one."""
        return self._thread.is_alive()

    def get(self, url: str) -> bytes:
        """The body that ``url`` leads to; blocks for as long as the settings ``fetch_*`` allow.

        Raises:
            BadImage: the URL is refused, leads to nothing, or to too much.
        """
        return self.begin(url)()

    def begin(self, url: str) -> Callable[[], bytes]:
        """Begin to fetch ``url``. The function that is returned waits for the body; see :meth:`get`."""
        with self._lock:
            if self._closed:
                raise BadImage.because(UNREACHABLE)
            rounds = 1 + self._waiting // self._settings.fetch_concurrency  # those before it have their turn first
            self._waiting += 1
            future = asyncio.run_coroutine_threadsafe(self._fetcher.get(url.strip()), self._loop)
        future.add_done_callback(self._done)
        timeout = (rounds + 1) * self._settings.fetch_timeout + self._grace
        return lambda: _result(future, timeout)

    def close(self, timeout: float = STOP_TIMEOUT) -> None:
        """Cancel what is being fetched and end the thread, within ``timeout`` seconds."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.alive:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(timeout)

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


def _result(future: Future[bytes], timeout: float) -> bytes:
    try:
        return future.result(timeout)
    except ClipError:
        raise
    except (TimeoutError, CancelledError):  # too late, or ended by close()
        future.cancel()
    except Exception as error:
        # A bug of ours. Its text may quote the URL, whose query may be a signature: the log gets class and place alone.
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("fetching an image failed unexpectedly: %s\n%s", type(error).__name__, place)
    raise BadImage.because(UNREACHABLE) from None


_lock = threading.Lock()
_fetchers: OrderedDict[tuple[str, ...], UrlFetcher] = OrderedDict()  # by what it depends on; the last used is last


def get(url: str, settings: Settings) -> bytes:
    """:meth:`UrlFetcher.get` by the process's fetcher for these settings. For many threads.

    Raises:
        BadImage: the URL is refused, leads to nothing, or to too much.
        SourceError: nothing can be fetched with these settings.
    """
    key = tuple(
        repr(getattr(settings, name))
        for name in type(settings).model_fields
        if name.startswith("fetch_") or name == "max_image_bytes"
    )
    oldest = None
    with _lock:
        fetcher = _fetchers.get(key)
        if fetcher is None or not fetcher.alive:
            fetcher = _fetchers[key] = UrlFetcher(settings)
        _fetchers.move_to_end(key)
        wait = fetcher.begin(url)  # in the lock: nobody stops the fetcher before
        if len(_fetchers) > MAX_FETCHERS:
            _, oldest = _fetchers.popitem(last=False)
    if oldest is not None:
        oldest.close()
    return wait()


def close() -> None:
    """End all fetchers and what they fetch; the next :func:`get` begins anew."""
    with _lock:
        ending = list(_fetchers.values())
        _fetchers.clear()
    for fetcher in ending:
        fetcher.close()
