"""``clip-queue up`` with everything real: starts, serves, mends what is killed, leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from clip_queue.shared.settings import Settings
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.machine import StackError, free_port
from clip_queue.worker.inference.clip_model import CHECKPOINTS

READY = 120.0  # seconds; a loaded machine imports torch slowly
ENDED = 45.0  # seconds


class Up:
    """A running ``clip-queue up``."""

    def __init__(self, folder: Path, *arguments: str, before: str = "", **env: str) -> None:
        self.port = free_port()
        self.data_dir = folder / "data"
        self.out = folder / "out"
        command = [
            sys.executable,
            "-c",
            f"{before}from clip_queue.cli.main import app; app()",
            "up",
            "--port",
            str(self.port),
            "--api-processes",
            "1",  # else as many as this machine has cores for
            "--data-dir",
            str(self.data_dir),
        ]
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    @property
    def said(self) -> str:
        return self.out.read_text()

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by what they are."""
        names = {"valkey-server": "valkey", "celery": "worker", "api_server": "api"}  # its guardian has none of these
        found = {}
        for process in psutil.Process(self.process.pid).children():
            self.seen.add(process)
            words = " ".join(process.cmdline())
            found |= {name: process for mark, name in names.items() if mark in words}
        return found

    def await_ready(self) -> None:
        until(lambda: "ready in" in self.said or self.process.poll() is not None, READY)
        assert "ready in" in self.said, self.said
        assert set(self.children()) == {"valkey", "worker", "api"}

    def await_end(self) -> int:
        return self.process.wait(timeout=ENDED)

    def left(self) -> list[psutil.Process]:
        return [p for p in self.seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        if self.process.poll() is None:
            self.children()
            self.process.kill()
            self.process.wait(timeout=10)
        for process in self.left():
            process.kill()


def until(true: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


def answers(port: int) -> bool:
    body = {"text": f"a whale {time.monotonic()}"}  # not one that a cache knows
    try:
        return httpx.post(f"http://127.0.0.1:{port}/clip/embed_text", json=body, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    it = Up(tmp_path_factory.mktemp("up"))
    try:
        it.await_ready()
        yield it
    finally:
        it.end()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start one for this test alone; it is gone after it, whatever the test did."""
    started: list[Up] = []

    def start(*arguments: str, before: str = "", **env: str) -> Up:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Up(folder, *arguments, before=before, **env))
        return started[-1]

    yield start
    for it in started:
        it.end()


def test_it_says_what_runs_where(up: Up) -> None:
    said = up.said
    assert f"http://127.0.0.1:{up.port}/docs" in said
    assert str(up.data_dir / "logs") in said
    assert "emoji-mini knows emoji pictures by their names and nothing of photographs" in said
    assert "CLIP_QUEUE_MODELS=ViT-B-16" in said
    assert "none set (CLIP_QUEUE_API_KEYS)" in said


def test_the_request_it_prints_works_as_printed(up: Up) -> None:
    match = re.search(r"curl .*", up.said)
    assert match
    done = subprocess.run(["bash", "-c", match[0]], capture_output=True, text=True, timeout=60, check=True)
    dog_puppy, dog_banana = json.loads(done.stdout)["similarity"]
    assert dog_puppy > dog_banana


def test_only_this_machine_reaches_it(up: Up) -> None:
    for process in up.children().values():
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr[0] == "127.0.0.1"


def test_valkey_asks_for_a_password_that_no_command_line_shows(up: Up) -> None:
    config = (up.data_dir / "valkey.conf").read_text()
    match = re.search(r"requirepass (\S+)", config)
    assert match
    for process in up.children().values():
        assert match[1] not in " ".join(process.cmdline())
    assert (up.data_dir / "valkey.conf").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("which", ["worker", "api", "valkey"])
def test_what_is_killed_is_started_again_and_serves(up: Up, which: str) -> None:
    before = up.children()[which]
    before.kill()
    until(lambda: f"{'worker-1' if which == 'worker' else which} ended (killed by SIGKILL)" in up.said, 10)
    until(lambda: up.children().get(which, before) != before, 10)
    until(lambda: answers(up.port), READY)


def test_a_second_one_on_the_same_folder_or_port_is_refused(up: Up) -> None:
    command = [sys.executable, "-m", "clip_queue.cli", "up", "--port"]
    same_port = subprocess.run([*command, str(up.port)], capture_output=True, text=True, timeout=60)
    assert same_port.returncode == 1
    assert "Address already in use" in same_port.stderr
    assert "--port" in same_port.stderr
    same_folder = subprocess.run(
        [*command, str(free_port()), "--data-dir", str(up.data_dir)], capture_output=True, text=True, timeout=60
    )
    assert same_folder.returncode == 1
    assert f"another clip-queue (pid {up.process.pid}) uses {up.data_dir}" in same_folder.stderr
    assert answers(up.port), "and the first one goes on"


def test_ctrl_c_stops_all_of_it(up: Up) -> None:
    """The last of this file to use ``up``."""
    up.children()
    up.process.send_signal(signal.SIGINT)
    assert up.await_end() == 0, up.said
    assert up.left() == []
    assert up.said.rstrip().endswith("stopped")
    assert "Traceback" not in up.said


def test_sigterm_while_it_starts(launch: Callable[..., Up]) -> None:
    it = launch()
    until(lambda: set(it.children()) == {"valkey", "worker", "api"}, 30)
    it.process.terminate()
    assert it.await_end() == 0, it.said
    assert it.left() == []
    assert "Traceback" not in it.said


def test_kill_9_leaves_nothing_running_and_the_folder_free(launch: Callable[..., Up]) -> None:
    """By the guardian alone, as where the kernel has no death signal."""
    it = launch(before="from clip_queue.stack import supervisor; supervisor.DEATH_SIGNAL = False; ")
    it.await_ready()
    it.process.kill()
    it.await_end()
    until(lambda: it.left() == [], ENDED)
    with EmbeddedStack(Settings(), workers=0, apis=0, data_dir=it.data_dir):
        pass


@pytest.mark.parametrize("which", ["worker", "api", "valkey"])
def test_what_is_killed_while_it_starts_does_not_end_it(launch: Callable[..., Up], which: str) -> None:
    it = launch()
    until(lambda: set(it.children()) == {"valkey", "worker", "api"}, READY)
    it.children()[which].kill()
    until(lambda: "ended (killed by SIGKILL); starting it again" in it.said, READY)
    until(lambda: "ready in" in it.said or it.process.poll() is not None, READY)
    assert answers(it.port), it.said


def test_what_happens_to_its_logs_ends_nothing(launch: Callable[..., Up]) -> None:
    it = launch()
    it.await_ready()
    before = it.children()
    logs = it.data_dir / "logs"
    shutil.rmtree(logs)
    logs.write_text("a file in place of the folder")
    httpx.get(f"http://127.0.0.1:{it.port}/no-such-route", timeout=10)  # leaves a line in the API's log
    until(lambda: "api.log cannot be written" in it.said, READY)
    assert answers(it.port)
    logs.unlink()

    def resumed() -> bool:
        httpx.get(f"http://127.0.0.1:{it.port}/no-such-route", timeout=10)
        return (logs / "api.log").exists()

    until(resumed, READY)
    assert it.children() == before
    assert it.said.count("api.log cannot be written") == 1


def test_after_everything_was_killed_at_once_it_starts_again(launch: Callable[..., Up]) -> None:
    it = launch()
    it.await_ready()
    for process in [psutil.Process(it.process.pid), *psutil.Process(it.process.pid).children(recursive=True)]:
        process.kill()
    it.await_end()
    again = EmbeddedStack(Settings(), workers=0, apis=0, data_dir=it.data_dir)
    with again:
        assert again.pids.keys() == {"valkey"}


def test_a_redis_of_ones_own_and_keys(launch: Callable[..., Up]) -> None:
    with EmbeddedStack(Settings(), workers=0, apis=0) as redis:
        it = launch(CLIP_QUEUE_REDIS_URL=redis.redis_url, CLIP_QUEUE_API_KEYS="key-one")
        until(lambda: "ready in" in it.said or it.process.poll() is not None, READY)
        assert set(it.children()) == {"worker", "api"}, it.said
        assert "Authorization: Bearer YOUR-KEY" in it.said
        assert "key-one" not in it.said
        url = f"http://127.0.0.1:{it.port}/clip/embed_text"
        assert httpx.post(url, json={"text": "a"}, timeout=10).status_code == 401
        headers = {"Authorization": "Bearer key-one"}
        assert httpx.post(url, json={"text": "a"}, headers=headers, timeout=10).status_code == 200
        it.process.terminate()
        assert it.await_end() == 0
        assert it.left() == []


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    stack = EmbeddedStack(Settings(models=["gone=local-dir:/no/such/folder"]), data_dir=tmp_path)
    with pytest.raises(StackError) as caught:
        stack.start(timeout=READY)
    why = "CLIP_QUEUE_MODELS: gone=local-dir:/no/such/folder cannot be loaded: there is no folder /no/such/folder"
    assert str(caught.value) == f"worker-1 cannot start: {why}"
    assert stack.pids == {}


def test_an_api_that_cannot_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    """Although its port takes connections: nobody waits there longer than for a look."""
    stack = EmbeddedStack(Settings(search=[f"gone={tmp_path}/gone"]), workers=0, data_dir=tmp_path / "data")
    with pytest.raises(StackError, match=r"^api cannot start: .*gone"):
        stack.start(timeout=READY)
    assert stack.pids == {}


def test_workers_may_have_models_of_their_own(launch: Callable[..., Up]) -> None:
    twin = f"twin=local-dir:{CHECKPOINTS / 'emoji-mini'}"
    it = launch("--serve", f"emoji-mini:1,{twin}:1", "--precision", "fp32", "--log-level", "warning")
    until(lambda: "ready in" in it.said or it.process.poll() is not None, 2 * READY)
    assert "serves emoji-mini" in it.said
    assert "serves twin" in it.said
    found = httpx.get(f"http://127.0.0.1:{it.port}/metrics", timeout=30).text
    live = re.findall(r'clip_queue_workers\{device="cpu",model="(\S+)"\} (\S+)', found)
    assert sorted(live) == [("emoji-mini", "1.0"), ("twin", "1.0")]
    vectors = []
    for model in ("emoji-mini", "twin"):
        body = {"text": "a whale", "clip_version_id": model}
        answer = httpx.post(f"http://127.0.0.1:{it.port}/clip/embed_text", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        vectors.append(answer.json()["embeddings"])
    assert vectors[0] == vectors[1]
    it.children()
    it.process.send_signal(signal.SIGTERM)
    assert it.await_end() == 0
    assert it.left() == []
