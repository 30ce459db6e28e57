"""Several API processes on one port, as ``up`` starts them: one that dies refuses nobody, each counts for all."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict

from clip_queue.shared.census import census
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.stack import api_processes
from clip_queue.stack.children import COUNTS
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.machine import listening
from tests.harness import wait_for

NAMES = ("api-1", "api-2")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
START = 180.0  # seconds; a loaded machine imports torch slowly
SENT: list[int] = []  # the status of each request for a vector


def at_both(_: str, port: int) -> list[socket.socket]:
    """As for a name with several addresses, such as `localhost` often has."""
    first = listening(ADDRESSES[0], port)
    return [*first, *listening(ADDRESSES[1], first[0].getsockname()[1])]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    stack = EmbeddedStack(Settings(), apis=2, data_dir=tmp_path_factory.mktemp("apis") / "data", max_delay=1.0)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(api_processes, "listening", at_both)
            stack.start(timeout=START)
        yield stack
    finally:
        stack.stop()


def embed(stack: EmbeddedStack, text: str, query: str = "") -> int:
    """The status of a request on a connection of its own."""
    SENT.append(httpx.post(f"{stack.api_url}/clip/embed_text{query}", json={"text": text}, timeout=60).status_code)
    return SENT[-1]


def embedded(stack: EmbeddedStack) -> int:
    """How many such requests were answered, by ``/metrics`` of whichever process answers."""
    text = httpx.get(f"{stack.api_url}/metrics", timeout=60).text
    found = re.findall(r'^clip_queue_requests_total\{.*route="/clip/embed_text".*\} (\S+)$', text, re.MULTILINE)
    return round(sum(map(float, found)))


def all_are_counted(stack: EmbeddedStack) -> None:
    """Each process says of all requests that they were answered. A request is counted after its answer was sent."""
    wait_for(lambda: embedded(stack) == len(SENT), 30, "all to be counted")
    assert {embedded(stack) for _ in range(10)} == {len(SENT)}


def answered(stack: EmbeddedStack) -> dict[str, int]:
    """How many such requests each process has answered, by its own file, which it makes for the first."""
    found = dict.fromkeys(NAMES, 0)
    for name in NAMES:
        file = counts(stack) / f"counter_{name}.db"
        for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)) if file.exists() else ():
            found[name] += round(value) if "/clip/embed_text" in key else 0
    return found


def counts(stack: EmbeddedStack) -> Path:
    """The folder of what the API processes count."""
    (folder,) = {Path(psutil.Process(pid).environ()[COUNTS]) for pid in running(stack).values()}
    return folder


def running(stack: EmbeddedStack) -> dict[str, int]:
    """The ids of the API processes that run."""
    return {name: pid for name, pid in stack.pids.items() if name in NAMES}


def test_both_take_connections(pair: EmbeddedStack) -> None:
    def both_have_answered() -> bool:
        assert embed(pair, f"both {len(SENT)}") == 200
        return min(answered(pair).values()) > 0

    wait_for(both_have_answered, START, "both to answer")
    assert len(SENT) < 500, "they take turns"
    wait_for(lambda: sum(answered(pair).values()) == len(SENT), 30, "all to be counted")


def test_each_address_of_the_name_is_answered(pair: EmbeddedStack) -> None:
    for address in ADDRESSES:
        url = f"http://{address}:{pair.apis.port}/clip/embed_text"
        SENT.append(httpx.post(url, json={"text": address}, timeout=60).status_code)
        assert SENT[-1] == 200


def test_no_log_has_a_key_of_a_query(pair: EmbeddedStack) -> None:
    for number in range(10):
        assert embed(pair, "hidden", f"?api_key=s3cr3t-{number}") == 200
    logs = {path.name: path.read_text() for path in pair.logs.iterdir()}
    assert {"api-1.log", "api-2.log"} <= logs.keys()
    assert not [name for name, text in logs.items() if "s3cr3t" in text]


def test_each_counts_what_all_have_answered_also_those_that_died(pair: EmbeddedStack) -> None:
    assert [embed(pair, f"count {number}") for number in range(20)] == [200] * 20
    all_are_counted(pair)
    died = running(pair)["api-1"]
    os.kill(died, signal.SIGKILL)
    wait_for(lambda: running(pair).get("api-1", died) != died, START, "api-1 to be started again")
    assert embed(pair, "after it") == 200
    all_are_counted(pair)
    files = {f"{kind}_{name}.db" for kind in ("counter", "histogram") for name in NAMES}
    assert {path.name for path in counts(pair).glob("*.db")} == files, "what is started again goes on where it was"


def test_who_comes_while_one_is_dead_is_answered_by_the_other(pair: EmbeddedStack) -> None:
    died = running(pair)["api-2"]
    os.kill(died, signal.SIGKILL)
    began, answers = time.monotonic(), []
    while time.monotonic() - began < 2:
        answers.append(embed(pair, f"one is dead {began} {len(answers)}"))  # refused, it would raise
    assert set(answers) == {200}
    wait_for(lambda: running(pair).get("api-2", died) != died, START, "api-2 to be started again")


def test_who_comes_while_all_are_dead_waits(pair: EmbeddedStack) -> None:
    before = running(pair)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(psutil.pid_exists, before.values())), 30, "both to end")
    assert embed(pair, f"all are dead {time.monotonic()}") == 200


def test_once_it_stops_nobody_gets_in(pair: EmbeddedStack) -> None:
    """The last of this file. A request that takes its time is finished, and nobody waits at a port that closes."""
    wait_for(lambda: len(running(pair)) == 2, START, "both to run")
    folder = counts(pair)
    assert folder.is_dir()
    os.kill(pair.pids["worker-1"], signal.SIGSTOP)
    worker = pair.pids["worker-1"]
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(embed(pair, f"late {time.monotonic()}")))
    slow.start()
    with closing(Store.connect(pair.settings)) as store:
        wait_for(lambda: any(lane.items for lane in store.execute(census(["emoji-mini"])).lanes), 30, "its job to wait")
    stopping = threading.Thread(target=pair.stop)
    stopping.start()
    try:
        for address in ADDRESSES:
            wait_for(lambda to=address: not _connects(to, pair.apis.port), 8, f"the port to close at {address}")  # type: ignore[misc]
        assert stopping.is_alive()
        assert not answers, "the slow request was still under way"
    finally:
        os.kill(worker, signal.SIGCONT)
    stopping.join(START)
    slow.join(60)
    assert answers == [200]
    assert pair.pids == {}
    assert not folder.exists()


def _connects(address: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((address, port), timeout=5).close()
        return True
    return False
