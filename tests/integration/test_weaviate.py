"""Weaviate's `multi2vec-clip` wire with real processes, by the bytes that Go's HTTP client sends for its module."""

from __future__ import annotations

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from clip_queue.shared.vectors import normalise
from tests.harness import ROOT, Api, Stack
from tests.wire import embed_images, embed_texts, ok, same, vectors

DOG = (ROOT / "cli" / "samples" / "dog.png").read_bytes()
WORDS = ["dog face", "pizza"]


def go(api: Api, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of the answer to a request as Go's client writes it: no Content-Type, gzip offered."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{api.port}", "User-Agent: Go-http-client/1.1"]
    lines += [f"Content-Length: {len(body)}"] if body is not None else []
    request = "\r\n".join([*lines, "Accept-Encoding: gzip", "", ""]).encode() + (body or b"")
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
        head, _, content = answer.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
        while len(content) < (int(lengths[0]) if lengths else 0):
            content += connection.recv(65536)
    return int(head[9:12]), content


def test_what_the_module_sends_is_vectorised(served: tuple[Stack, Api], http: httpx.Client) -> None:
    body = {"texts": WORDS, "images": [base64.b64encode(DOG).decode()]}
    status, content = go(served[1], "POST", "/vectorize", json.dumps(body, separators=(",", ":")).encode())
    assert status == 200
    answer: dict[str, Any] = json.loads(content)
    same(np.array(answer["textVectors"], np.float32), normalise(vectors(embed_texts(http, WORDS))))
    same(np.array(answer["imageVectors"], np.float32), normalise(vectors(embed_images(http, [DOG]))))
    status, content = go(served[1], "POST", "/vectorize", b'{"texts":["dog face"],"images":null}')
    assert (status, json.loads(content)["imageVectors"]) == (200, [])
    status, content = go(served[1], "POST", "/vectorize", b'{"texts":null,"images":["bm9uZQ=="]}')
    assert status == 400
    assert "Data is not image" in json.loads(content)["error"]


def test_a_text_that_is_too_long_is_cut_as_the_container_does(served: tuple[Stack, Api], http: httpx.Client) -> None:
    long = "dog face " * 5000  # more tokens than the model has, and more characters than the settings allow
    status, content = go(served[1], "POST", "/vectorize", json.dumps({"texts": [long, "dog face"]}).encode())
    assert status == 200, content
    first, second = np.array(json.loads(content)["textVectors"], np.float32)
    assert first @ second < 0.9999
    cut = vectors(embed_texts(http, [long], long_texts="cut"))
    same(np.array([first]), normalise(cut))


def test_it_is_live_and_ready_and_tells_what_it_is(served: tuple[Stack, Api]) -> None:
    for path in ("/.well-known/live", "/.well-known/ready"):
        assert go(served[1], "GET", path) == (204, b"")
    assert json.loads(go(served[1], "GET", "/meta")[1])["model"] == "emoji-mini"


def test_ready_is_told_while_large_requests_wait(served: tuple[Stack, Api]) -> None:
    def ask(number: int) -> None:
        with served[1].client() as http:
            texts = [f"thing {number} {i}" for i in range(2048)]
            ok(http.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}))

    times = []
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, number) for number in range(3)]
        while not all(request.done() for request in asked):
            began = time.monotonic()
            assert go(served[1], "GET", "/.well-known/ready")[0] == 204
            times.append(time.monotonic() - began)
        for request in asked:
            request.result()
    assert min(times) < 0.5
