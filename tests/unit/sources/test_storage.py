"""The border to the stores: names, what a client raises, and that nothing of ours is taken for a client's error."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources import discovery, registry, storage
from clip_queue.sources.source import Source, SourceAway, SourceError
from clip_queue.sources.store_client import StoreFile
from tests.unit.sources.clients import SECRET, BrokenFile, ClientError, EndpointConnectionError, Refused, raising

SETTINGS = Settings()


# Names


def test_a_url_is_split_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.split("file:///a b/c") == ("file", "/a b/c")
    assert storage.split("memory://a/b") == ("memory", "/a/b")
    assert storage.split("not a protocol://x") == ("file", f"{tmp_path}/not a protocol:/x")
    assert storage.absolute("a") == f"{tmp_path}/a"
    assert storage.absolute("memory://a") == "memory://a"
    assert storage.join("memory", "/a/b") == "memory://a/b"


def test_a_protocol_that_cannot_be_opened_is_refused() -> None:
    with pytest.raises(BadInput, match="nosuchprotocol:// cannot be opened here"):
        storage.split("nosuchprotocol://a")


def test_a_client_that_cannot_be_made_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((ClientError(SECRET), OSError), (EndpointConnectionError(SECRET), storage.StoreAway)):
        monkeypatch.setattr(fsspec, "filesystem", raising(error))
        with pytest.raises(expected) as caught:
            storage.filesystem("made-for-this-test")
        assert "secret" not in str(caught.value)
    monkeypatch.setattr(fsspec, "filesystem", raising(FileNotFoundError("no credentials file")))
    with pytest.raises(FileNotFoundError):
        storage.filesystem("made-for-this-test")


@pytest.mark.parametrize(
    ("path", "text", "count"),
    [(b"a b", "a b", 1), (b"\xff", "\\xff", 2), ("é".encode(), "é", 1), (b"\\x41", "\\x41", 1)],
)
def test_a_path_is_among_the_spellings_of_its_text(path: bytes, text: str, count: int) -> None:
    assert storage.display(path) == text
    assert path in storage.spellings(text)
    assert len(storage.spellings(text)) == count


# What a client raises


CALLS: dict[str, tuple[str, Callable[[], object]]] = {
    "kind": ("info", lambda: storage.kind("memory", "/d/a")),
    "size": ("info", lambda: storage.size("memory", "/d/a")),
    "matches": ("glob", lambda: list(storage.matches("memory", "/d/*"))),
    "entries": ("ls", lambda: list(storage.entries("memory", "/d"))),
    "forget_listings": ("invalidate_cache", lambda: storage.forget_listings("memory")),
    "split": ("_strip_protocol", lambda: storage.split("memory://d/a")),
    "read_bytes": ("open", lambda: storage.read_bytes("memory", b"/d/a", 10)),
    "reader": ("open", lambda: storage.reader("memory", b"/d/a", 10)()),
    "opened": ("open", lambda: storage.opened("memory", b"/d/a").__enter__()),
}


@pytest.mark.parametrize(("method", "call"), CALLS.values(), ids=CALLS)
def test_an_error_of_any_class_becomes_an_oserror_without_the_address(
    memory: Any, monkeypatch: pytest.MonkeyPatch, method: str, call: Callable[[], object]
) -> None:
    memory.pipe("/d/a", b"x")
    monkeypatch.setattr(memory, method, raising(ClientError(SECRET)))
    with pytest.raises(OSError, match=r"^ClientError$") as caught:
        call()
    assert isinstance(caught.value.__cause__, ClientError)


@pytest.mark.parametrize(("method", "call"), CALLS.values(), ids=CALLS)
def test_a_store_that_does_not_answer_is_away(
    memory: Any, monkeypatch: pytest.MonkeyPatch, method: str, call: Callable[[], object]
) -> None:
    memory.pipe("/d/a", b"x")
    advice = "EndpointConnectionError: check that the store can be reached, and the credentials for it$"
    monkeypatch.setattr(memory, method, raising(EndpointConnectionError(SECRET)))
    with pytest.raises((storage.StoreAway, SourceAway), match=advice) as caught:
        call()
    assert storage.is_away(caught.value) or isinstance(caught.value, SourceAway)


@pytest.mark.parametrize("call", ["read", "seek", "tell", "close", "readinto"])
def test_an_open_file_raises_only_oserrors(call: str) -> None:
    arguments = {"read": [5], "seek": [0], "readinto": [bytearray(5)]}.get(call, [])
    with pytest.raises(OSError, match=r"^ClientError$"):
        getattr(StoreFile(BrokenFile(ClientError(SECRET))), call)(*arguments)
    with pytest.raises(storage.StoreAway):
        getattr(StoreFile(BrokenFile(EndpointConnectionError())), call)(*arguments)
    with pytest.raises(FileNotFoundError, match="gone"):
        getattr(StoreFile(BrokenFile(FileNotFoundError("gone"))), call)(*arguments)


def test_an_open_file_is_read_like_any_other() -> None:
    inner = io.BytesIO(b"0123456789")
    with StoreFile(inner) as file:
        assert (file.readable(), file.seekable()) == (True, True)
        assert (file.read(2), file.tell(), file.seek(-1, 2), file.read()) == (b"01", 2, 9, b"9")
        file.seek(0)
        assert io.BufferedReader(file, 4).read() == b"0123456789"
    assert inner.closed


def test_who_is_to_blame() -> None:
    with pytest.raises(storage.StoreAway, match="check that the store"), storage.as_os_error():
        raise OSError(errno.ECONNRESET, "reset")
    with pytest.raises(PermissionError, match=r"^no: check the credentials for the store$"), storage.as_os_error():
        raise Refused("no.")
    with pytest.raises(FileNotFoundError) as gone, storage.as_os_error():
        raise FileNotFoundError("gone")
    kernel = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(PermissionError) as denied, storage.as_os_error():
        raise kernel
    assert denied.value is kernel
    assert storage.is_barred(Refused("no"))
    assert storage.is_barred(storage.StoreAway())
    assert not storage.is_barred(kernel)
    assert not storage.is_barred(gone.value)


def test_an_error_that_was_wrapped_is_not_wrapped_again() -> None:
    for error in (ClientError(SECRET), EndpointConnectionError(SECRET), Refused("no"), OSError(errno.EPIPE, "pipe")):
        with pytest.raises(OSError) as once, storage.as_os_error():
            raise error
        with pytest.raises(OSError) as twice, storage.as_os_error():
            raise once.value
        assert (type(once.value), str(once.value)) == (type(twice.value), str(twice.value))
        assert storage.reason(once.value) == str(once.value) == storage.reason(error)


def test_an_image_that_the_store_refuses_says_what_the_store_says(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "open", raising(Refused("Access Denied")))
    with pytest.raises(PermissionError, match=r"^Access Denied$"):
        storage.read_bytes("memory", b"/d/a", 10)


def test_a_store_that_fails_refuses_the_source(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/d/a.txt", b"x")
    for method, message in (("info", "cannot be looked at: ClientError"), ("ls", "cannot be listed: ClientError")):
        with monkeypatch.context() as patched:
            patched.setattr(memory, method, raising(ClientError(SECRET)))
            with pytest.raises(SourceError, match=message):
                discovery.containers("memory://d", (".txt",))
    monkeypatch.setattr(memory, "open", raising(ClientError(SECRET)))
    for format in ("text", "csv", "jsonl"):
        with pytest.raises(SourceError, match=r"a\.txt cannot be read: ClientError"):
            list(registry.plan_shards(Source("memory://d/a.txt", format), 10, SETTINGS)[1])


# S3


class FakeS3:
    """The parts of s3fs that are used, for a bucket of two pages."""

    pages: ClassVar[dict[str | None, dict[str, Any]]] = {
        None: {
            "CommonPrefixes": [{"Prefix": "d/sub/"}],
            "Contents": [{"Key": "d/", "Size": 0}, {"Key": "d/a", "Size": 5}],
            "IsTruncated": True,
            "NextContinuationToken": "next",
        },
        "next": {"Contents": [{"Key": "d/b", "Size": 6}]},
    }

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, **asked: str) -> dict[str, Any]:
        self.asked.append(asked)
        return self.pages[asked.get("ContinuationToken")]

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        if path == "bucket/empty":
            error = OSError(errno.EINVAL, "the range is invalid")
            error.__cause__ = cause = ClientError()
            cause.response = {"Error": {"Code": "InvalidRange"}}  # type: ignore[attr-defined]
            raise error
        return b"0123456789"[start:end]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    store = FakeS3()
    storage.filesystem.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol: store)
    yield store
    storage.filesystem.cache_clear()


def test_a_folder_of_s3_is_listed_by_the_page(s3: FakeS3) -> None:
    found = list(storage.entries("s3", "bucket/d"))
    assert found == [(b"bucket/d/sub", storage.FOLDER, 0), (b"bucket/d/a", storage.FILE, 5), (b"bucket/d/b", "file", 6)]
    assert [asked["Delimiter"] for asked in s3.asked] == ["/", "/"]
    assert [asked["Prefix"] for asked in s3.asked] == ["d/", "d/"]
    list(storage.entries("s3", "bucket", flat=True))
    assert s3.asked[2] == {"Bucket": "bucket", "Prefix": "", "Delimiter": ""}


def test_a_file_of_s3_is_read_in_one_request(s3: FakeS3) -> None:
    assert storage.read_bytes("s3", b"bucket/a", 3) == b"0123"
    assert storage.read_bytes("s3", b"bucket/empty", 3) == b""
