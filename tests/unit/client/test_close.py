"""A client that is closed, or interrupted, in the middle of a request to a server that never answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
import trustme

from clip_queue import AsyncClient, Client, ClientClosed
from tests.harness import ROOT, wait_for

SOON = 20.0  # seconds on a loaded machine; an answer never comes, and the timeout is ten minutes


@dataclass
class Silent:
    """A server that reads requests and says nothing."""

    url: str
    trust: ssl.SSLContext | bool = True
    received: list[bytes] = field(default_factory=list)


def serve(silent: Silent, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    connections: list[socket.socket] = []

    def read(connection: socket.socket) -> None:
        try:
            if tls:
                connection = tls.wrap_socket(connection, server_side=True)
            while data := connection.recv(65536):
                silent.received.append(data)
        except OSError:
            pass

    threads: list[threading.Thread] = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            break
        connections.append(connection)
        threads.append(threading.Thread(target=read, args=(connection,), daemon=True))
        threads[-1].start()
    for connection in connections:
        connection.close()


@pytest.fixture(params=["http", "https"])
def silent(request: pytest.FixtureRequest) -> Iterator[Silent]:
    listener = socket.create_server(("127.0.0.1", 0))
    silent, tls = Silent(f"{request.param}://127.0.0.1:{listener.getsockname()[1]}"), None
    if request.param == "https":
        authority = trustme.CA()
        tls, silent.trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        authority.configure_trust(silent.trust)
    thread = threading.Thread(target=serve, args=(silent, listener, tls))
    thread.start()
    yield silent
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


@pytest.mark.parametrize("what", ["embed_texts", "submit", "job"])
def test_closing_ends_a_call_in_another_thread(silent: Silent, what: str) -> None:
    raised: list[BaseException] = []
    arguments = {"embed_texts": (["a"] * 2000,), "submit": ({"task": "embed_text", "text": "a"},), "job": ("j",)}[what]
    with httpx.Client(verify=silent.trust, trust_env=False) as http:
        client = Client(silent.url, http=http, timeout=600)

        def ask() -> None:
            try:
                getattr(client, what)(*arguments)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: silent.received, SOON, "the request")
        began = time.monotonic()
        client.close()
        thread.join(SOON)
        assert not thread.is_alive()
        assert time.monotonic() - began < SOON
        assert [type(error) for error in raised] == [ClientClosed]
        client.close()


def test_closing_ends_a_pause_between_two_tries() -> None:
    raised: list[BaseException] = []
    refused = threading.Event()

    def refuse(_: httpx.Request) -> httpx.Response:
        refused.set()
        return httpx.Response(429, headers={"Retry-After": "500"})

    with httpx.Client(transport=httpx.MockTransport(refuse)) as http:
        client = Client("http://clip.test", http=http, retry_for=1000)

        def ask() -> None:
            try:
                client.embed_texts("a")
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert refused.wait(SOON)
        client.close()
        thread.join(SOON)
    assert [type(error) for error in raised] == [ClientClosed]


async def test_closing_ends_a_call_in_another_task(silent: Silent) -> None:
    async with httpx.AsyncClient(verify=silent.trust, trust_env=False) as http:
        client = AsyncClient(silent.url, http=http, timeout=600)
        calls = [asyncio.create_task(client.embed_texts(["a"] * 2000)), asyncio.create_task(client.job("j"))]
        async with asyncio.timeout(SOON):
            while len(silent.received) < 5:
                await asyncio.sleep(0.01)
            await client.aclose()
            found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in found] == [ClientClosed, ClientClosed]


async def test_a_cancelled_call_leaves_no_task(silent: Silent) -> None:
    async with AsyncClient(silent.url, http=httpx.AsyncClient(verify=silent.trust, trust_env=False)) as client:
        call = asyncio.create_task(client.embed_texts(["a"] * 2000))
        async with asyncio.timeout(SOON):
            while len(silent.received) < 4:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "clip-queue client"]
        await client._http.aclose()


SCRIPT = """
import signal, sys, clip_queue
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may ignore it
with clip_queue.Client(sys.argv[1], timeout=600) as client:
    try:
        client.embed_texts(["a"] * 5000)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_ctrl_c_does_not_wait_for_answers(silent: Silent) -> None:
    if silent.url.startswith("https"):
        pytest.skip("the same, with a certificate")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, silent.url], stdout=subprocess.PIPE, env=env, cwd=ROOT, text=True
    )
    try:
        wait_for(lambda: len(silent.received) >= 4, 60, "the requests")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=SOON)
        assert (process.returncode, out) == (0, "interrupted\n")
    finally:
        process.kill()
        process.wait(10)
