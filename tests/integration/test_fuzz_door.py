"""The whole door, from the socket on: whatever bytes come, no 5xx, no traceback, and each connection ends in time."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from clip_queue.api.requests import HEART
from tests.harness import Api, Stack
from tests.raw_http import Connection, status

REQUESTS = int(os.environ.get("CLIP_QUEUE_FUZZ", "400"))  # of each seed
KEY = "schlüssel-1"
NUMBERS = [
    "0",
    "-0",
    "1",
    "-1",
    "1e-9",
    "0.0009",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e-400",
    "9007199254740993",
    "2592000",
    "2592001",
]
NUMBERS += ["9" * 30, "9" * 5000, '"1"', '"nan"', '""', "null", "true", "[]", "{}", "0x10", "1_000", "١"]
QUERIES = ["nan", "inf", "-inf", "1e308", "-1", "0", "0.001", "", "1e", "%00", "%ff", "%", "%zz", "é", "9" * 5000]
QUERIES += ["null", "[]", "true", "1,5", "+1", "%2B1", "\x7f", "1e-400", "١", "0x10", "1_0"]
URLS = [
    "https://xn--a.com/",
    "https://xn--zz99.com/",
    "https://é.com/",
    "https://bücher.example/é?ü#ß",
    "https://☃.net/",
    "https://①.com",
    "https://a..b/",
    "https://" + "a" * 64 + ".com/",
    "https://" + "a." * 200 + "com/",
    "https://[::1]/",
    "https://[::1",
    "https://[v1.x]/",
    "https://1.1.1.1:99999/",
    "https://a.b:é/",
    "https://user:p@ss@a.b/",
    "https://\u202ea.com/",
    "https://\x00.com/",
    "https://a b/",
    "https:///",
    "https:a.com",
    "http://",
    "HTTPS://LOCALHOST",
    "https://0x7f.1/",
    "https://127。0。0。1/",
    "https://%6c%6fcalhost/",
    "https://a.test\r\nX: y/",
    "https://a\ud800.com/",
    "file:///etc/passwd",
    "ftp://a.b/",
    "gopher://a",
]
DATA = [
    f"data:image/png;base64,{HEART}",
    f"data:;base64,{HEART}",
    f"data:application/octet-stream;base64,{HEART}",
    f"DATA:IMAGE/PNG;BASE64,{HEART}",
    f"data:image/png;charset=utf-8;base64,{HEART}",
    f"data:image/png,{HEART}",
    "data:,hello",
    "data:",
    "data:;base64,",
    "data:;base64",
    "data:a/b;base64,%%%",
    "data:é;base64,AAAA",
    "data:" + "x" * 5000,
    "data:text/html;base64,PGh0bWw+",
    f"data:image/png;base64,{HEART[:-9]}é",
    "data:image/png;base64,\x00\x01",
]
TEXTS = ["", "cat", "\ud83d", "\x00", "é" * 100, "x" * 3000, "\u202e", "\uffff", "a\r\nb", "🙂" * 50, " "]
TASKS = ["/clip/embed_image", "/clip/embed_text", "/clip/compare", "/jobs"]
PATHS = [*TASKS, "/", "/info", "/healthz", "/readiness", "/model/registry", "/model/add", "/docs", "/openapi.json"]
IDS = [
    "0",
    "é",
    "%",
    "%00",
    "%ff",
    "%zz",
    "%2f",
    "..",
    ".",
    "%2e%2e",
    "a" * 5000,
    "{}",
    "*",
    "\\",
    "%F0%9F%99%82",
    "a;b",
]
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "QUERY",
    "SOURCE",
    "PRI",
    "get",
    "G",
    "FOO",
]
TYPES = ["application/json", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
TYPES += ["", "é", "application/json; charset=utf-16", "image/png", "multipart/form-data"]
ENCODINGS = ["identity", "gzip", "x-gzip", "GZIP", "br", "deflate", "gzip, gzip", "", "é", "zstd"]
VALUES = [
    b"",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"\x80",
    b"a\tb",
    b"a" * 3000,
    b"\x7f",
    b"*",
    b"1",
    b"-1",
    b"null",
    b"\x01",
    b"a\x00b",
]
NAMES = ["Idempotency-Key", "Last-Event-ID", "Accept", "Authorization", "X-Request-Id", "Origin", "Range", "If-Match"]
NAMES += ["Expect", "Upgrade", "Connection", "Cookie", "Host", "X-Forwarded-For", "Forwarded", "Accept-Encoding", "TE"]
NAMES += ["Transfer-Encoding", "Content-Length", "Access-Control-Request-Method", "é", "a b", "", ":", "X" * 500]


class Fuzz:
    """Requests near to good ones, and far from them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one(self, *of: Any) -> Any:
        return self.random.choice(of)

    def chance(self, part: float) -> bool:
        return self.random.random() < part

    def image(self) -> Any:
        value = self.one(self.one(*URLS), self.one(*DATA), self.one(*TEXTS), HEART)
        kind = self.one("url", "base64", "URL", "numpy", "", None)
        return self.one({"type": kind, "value": value}, {"type": "base64", "value": value}, value, self.junk())

    def junk(self, depth: int = 3) -> Any:
        if depth and self.chance(0.3):
            inner = [self.junk(depth - 1) for _ in range(self.random.randrange(4))]
            return self.one(inner, {self.one(*TEXTS): v for v in inner})
        return self.one(None, True, 0, -1.5, 10**25, self.one(*TEXTS))

    def several(self) -> Any:
        make = self.one(self.image, lambda: self.one(*TEXTS), self.junk)
        items = [make() for _ in range(self.one(0, 1, 2, 3, 9, 300))]
        return self.one(items, make(), {self.one(*TEXTS, "type", "value"): v for v in items})

    def body(self) -> bytes:
        fields = {
            "task": self.one("embed_image", "embed_text", "compare", self.junk()),
            "image": self.several(),
            "text": self.several(),
            "subject": self.image(),
            "prompt": self.several(),
            "subject_type": self.one("image", "text", self.junk()),
            "prompt_type": self.one("image", "text", self.junk()),
            "clip_version_id": self.one("emoji-mini", "emoji-mini", None, "é", self.junk()),
            "on_error": self.one("skip", "fail", self.junk()),
            "priority": self.one("background", "interactive", self.junk()),
            "api_key": self.one(KEY, self.junk()),
            "deadline_s": "@",
        }
        text = json.dumps({k: v for k, v in fields.items() if self.chance(0.75)}, ensure_ascii=self.chance(0.5))
        raw = text.replace('"@"', self.one(*NUMBERS)).encode("utf-8", "surrogatepass")
        if self.chance(0.15):
            raw = self.mutated(raw)
        if self.chance(0.05):
            raw = self.one(b"", b"\xef\xbb\xbf" + raw, raw.decode("utf-8", "replace").encode("utf-16"), b"[" * 5000)
        return raw

    def good_image(self) -> Any:
        data = self.one(*DATA[:5], HEART, HEART[:40] + "\n" + HEART[40:], HEART.rstrip("="))
        return self.one({"type": self.one("base64", "BASE64"), "value": data, "x": self.junk()}, data)

    def good(self) -> tuple[str, bytes]:
        """A path, and a body that is accepted there, however oddly it is written."""
        text = lambda: self.one("cat", "", "é" * 20, "\x00", "\u202e", "\uffff", "a\r\nb", " ")  # noqa: E731
        task = self.one("embed_image", "embed_text", "compare")
        make = self.good_image if task == "embed_image" else text
        items: Any = [make() for _ in range(self.one(1, 2, 3, 8))]
        fields: dict[str, Any] = {self.one("é", "", "x", "\ud83d", "__proto__"): self.junk(), "api_key": KEY}
        fields["clip_version_id"] = self.one("emoji-mini", None)
        if task == "compare":
            names = {f"{self.one(*TEXTS[:2], 'type', 'value')}{n}": item for n, item in enumerate(items)}
            subject = self.one(*(["image", self.good_image], ["text", text]))
            fields |= {"subject_type": subject[0], "subject": subject[1](), "prompt": self.one(items, names, items[0])}
            fields["prompt_type"] = "text"
        else:
            fields[task.removeprefix("embed_")] = self.one(items, items[0])
            if self.chance(0.4):  # what is bad of several is skipped
                fields["on_error"] = "skip"
                fields[task.removeprefix("embed_")] = [make(), self.junk(), self.one(*TEXTS, *URLS), make()]
        path = f"/clip/{task}"
        if self.chance(0.4):
            path = "/jobs"
            fields |= {"task": task, "priority": "background", "deadline_s": self.one(None, 1e-9, 5, 2592000, "3")}
        raw = json.dumps(fields, ensure_ascii=self.chance(0.5), indent=self.one(None, 1)).encode(
            "utf-8", "surrogatepass"
        )
        return path, self.one(raw, raw, b"\xef\xbb\xbf" + raw, raw[:-1] + b', "y": NaN}', raw[:-1] + b', "y": 1e999}')

    def mutated(self, raw: bytes) -> bytes:
        out = bytearray(raw)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(out) + 1)
            match self.random.randrange(3):
                case 0:
                    out[at:at] = self.random.randbytes(self.random.randrange(1, 5))
                case 1:
                    del out[at : at + self.random.randrange(1, 10)]
                case 2:
                    out[at : at + 1] = bytes([self.random.randrange(256)])
        return bytes(out)

    def target(self) -> str:
        job = self.one(*IDS)
        path = self.one(*PATHS, *TASKS * 10, f"/jobs/{job}", f"/jobs/{job}/result", f"/jobs/{job}/events", f"/{job}")
        if self.chance(0.05):
            path = self.one("*", "http://a.b/healthz", "//", "", "healthz", "a.b:443", "/\u202e", "http://[::1/", "/?")
        names = ("wait", "limit", "cursor", "state", "api_key", "é")
        pairs = [f"{self.one(*names)}={self.one(*QUERIES)}" for _ in range(self.random.randrange(3))]
        return path + ("?" + "&".join(pairs) if pairs else "")

    def request(self) -> bytes:
        path, body = self.target(), self.body()
        method = self.one(*METHODS, *["POST"] * 60, *["GET"] * 10)
        encoding = self.one(*ENCODINGS) if self.chance(0.15) else None
        good = self.chance(0.55)
        if good:
            method, encoding = "POST", self.one(None, None, "identity", "gzip", "X-GZIP")
            path, body = self.good()
            if self.chance(0.1):
                method, path = (
                    self.one("GET", "HEAD"),
                    self.one("/", "/jobs", "/jobs?limit=5", "/healthz", "/info", "/docs"),
                )
        if good and encoding in ("gzip", "X-GZIP"):
            body = b"".join(map(gzip.compress, self.one((body,), (body[:9], body[9:])))) + bytes(self.one(0, 7))
        elif encoding and "gzip" in encoding.lower() and self.chance(0.7):
            body = gzip.compress(body + b" " * self.one(0, 0, 1_000_000))
        headers = [("Host", b"x"), ("Content-Type", self.one(*TYPES, *TYPES[:1] * 9).encode())]
        if encoding is not None:
            headers.append(("Content-Encoding", encoding.encode()))
        if good:
            headers.append(("Authorization", b"Bearer " + self.one(KEY.encode(), KEY.encode("latin-1"))))
        elif self.chance(0.9):
            key = self.one(*[KEY.encode()] * 9, KEY.encode("latin-1"), b"\xff\xfe", b"", b" ")
            headers.append(("Authorization", self.one(*[b"Bearer "] * 8, b"bearer  ", b"Basic ", b"") + key))
        headers += [(self.one(*NAMES), self.one(*VALUES)) for _ in range(0 if good else self.one(0, 0, 0, 1, 2))]
        if good:
            headers += [
                (
                    self.one("X-Request-Id", "Origin", "Cookie", "Accept", "TE", "Upgrade"),
                    self.one(b"", b"*", b"1", b"\xff\xfe", b"h2c"),
                )
            ]
        if self.chance(0.1):
            sent = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:7], body[7:]) if p) + b"0\r\n\r\n"
            headers.append(("Transfer-Encoding", b"chunked"))
        else:
            sent = body
            headers.append(("Content-Length", b"%d" % len(body)))
        headers.append(("Connection", b"close"))
        self.random.shuffle(headers)
        version = self.one(*["1.1"] * 30, "1.0", "1.0", "2.0", "9.9", "")
        if good:
            version = self.one("1.1", "1.1", "1.1", "1.0") if b"chunked" not in dict(headers).values() else "1.1"
        line = f"{method} {path} HTTP/{version}".encode("utf-8", "surrogatepass")
        head = b"\r\n".join([line, *(name.encode() + b": " + value for name, value in headers)])
        whole = head + b"\r\n\r\n" + sent
        return self.mutated(whole) if not good and self.chance(0.2) else whole


@pytest.fixture(scope="module")
def door(served: tuple[Stack, Api]) -> Iterator[Api]:
    stack, _ = served
    api = stack.api(
        api_keys=KEY,
        header_timeout=2,
        client_timeout=2,
        max_wait=0.2,
        fetch_timeout=1,
        max_queued_items=10**6,
        fetch_allow_hosts="*.nowhere.invalid",
        max_body_bytes=200_000,
        cors_origins="https://a.b",
    )
    headers = {"Authorization": f"Bearer {KEY}".encode()}
    with api.client() as http:
        stack.ready(api)
        assert http.post("/clip/embed_text", json={"text": "a"}, headers=headers).status_code == 200
    yield api
    assert api.alive
    api.stop()


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_give_a_5xx_or_a_traceback(door: Api, seed: int) -> None:
    fuzz, seen = Fuzz(seed), dict[int, int]()
    for _ in range(REQUESTS):
        sent = fuzz.request()
        with Connection(door.port, timeout=30) as connection:
            connection.send(sent)
            try:
                answer = connection.read()
            except TimeoutError:
                pytest.fail(f"no end of the answer to {sent[:2000]!r}")
        code = status(answer)
        assert code < 500, (sent[:3000], answer[:1000])
        seen[code] = seen.get(code, 0) + 1
        if code >= 400 and not sent.startswith(b"HEAD"):
            assert b"application/json" in answer or b"text/plain" in answer, answer[:500]
    _, found, traceback = door.log.read_text(errors="replace").partition("Traceback")
    assert not found, traceback[:5000]
    print(seen)
    assert {200, 400, 401, 422} <= seen.keys(), seen
    accepted = sum(number for code, number in seen.items() if code < 300)
    assert accepted >= REQUESTS / 3, f"only {accepted} of {REQUESTS} requests reached what lies behind the door: {seen}"
