"""What a store's client asks the store, and what becomes of its errors: stores that give one answer to everything."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clip_queue.shared.settings import Settings
from clip_queue.sources import registry, storage
from clip_queue.sources.discovery import containers
from clip_queue.sources.formats import parquet
from clip_queue.sources.source import Piece, Source, SourceError
from tests.s3_store import PAGE, access, anew, canned, flat

pytestmark = pytest.mark.timeout(120)

SETTINGS = Settings()
PATH = b"data/image.jpg"
LIMIT = 1000


@contextmanager
def at(url: str) -> Iterator[None]:
    """This process finds its store there."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in access(url).items():
            environment.setenv(name, value)
        anew()
        yield
    anew()


@contextmanager
def answering(status: int, code: str = "", body: bytes = b"") -> Iterator[list[str]]:
    """A store that has one answer: a body, or an error as S3 words it. Gives what it was asked."""
    error = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode()
    with canned(status, error if code else body) as (url, asked), at(url):
        yield asked


# What a client asks


def test_an_image_costs_one_request_for_no_more_than_its_limit() -> None:
    with answering(206, body=b"x" * 10) as asked:
        assert storage.read_bytes("s3", PATH, LIMIT) == b"x" * 10
    assert asked == [f"GET /data/image.jpg bytes=0-{LIMIT}"], "one byte more, so that too large shows"


def test_an_empty_image_is_empty() -> None:
    with answering(416, "InvalidRange"):
        assert storage.read_bytes("s3", PATH, LIMIT) == b""


def test_a_folder_of_many_pages_is_listed_in_order_and_never_held_with_all_that_is_said_of_it() -> None:
    with flat(8 * PAGE) as url, at(url):
        storage.filesystem("s3").info("data/flat")  # its connection
        peaks = []
        tracemalloc.start()
        try:
            with pytest.raises(SourceError, match=r"no file there ends in \.tar"):
                containers("s3://data/flat", (".tar",))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
            _, shards = registry.plan_shards(Source("s3://data/flat", "folder"), 500, SETTINGS)
            planned = [piece.path for shard in shards for piece in shard.pieces]
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert planned == [b"data/flat/%08d.jpg" % n for n in range(4 * PAGE)]
    assert max(peaks) < 5 * 2**20, "a page takes two MiB, the whole listing nine"


# Who is to blame


LOGIN = ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch"]


@pytest.mark.parametrize("code", LOGIN)
def test_a_login_that_runs_out_is_no_image_s_fault(code: str) -> None:
    advice = f"data/image.jpg cannot be read: {code} it is: check that the store can be reached, and the credentials"
    with answering(403 if code != "ExpiredToken" else 400, code), pytest.raises(SourceError, match=advice):
        storage.read_bytes("s3", PATH, LIMIT)


@pytest.mark.parametrize(
    ("status", "code", "error"), [(403, "AccessDenied", PermissionError), (404, "NoSuchKey", FileNotFoundError)]
)
def test_an_image_that_nobody_may_read_or_that_is_gone_is_its_row_s_error(
    status: int, code: str, error: type[OSError]
) -> None:
    with answering(status, code), pytest.raises(error):
        storage.read_bytes("s3", PATH, LIMIT)


TABLE = Source("s3://data/t.parquet", "parquet", images=True, image_column="image", storage={"root": "data"})
LINES = Source("s3://data/t.jsonl", "jsonl", texts=True, text_column="text", storage={"root": "data"})
TARS = Source("s3://data/t.tar", "webdataset", images=True, storage={"root": "data"})


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize(
    ("source", "piece"),
    [
        (TABLE, Piece(b"data/t.parquet", 0, 1000, 5000)),
        (LINES, Piece(b"data/t.jsonl", 0, 5000, 5000, "0+1000")),
        (TARS, Piece(b"data/t.tar", size=5000)),
    ],
    ids=["parquet", "jsonl", "tar"],
)
def test_a_container_that_the_store_keeps_back_loses_no_row(source: Source, piece: Piece, status: int) -> None:
    """What a store says to HEAD has no words: 400 where the login has run out, 403 where it is the wrong one."""
    with answering(status), pytest.raises(OSError, match=r"check .*the credentials"):
        list(registry.read(source, [piece], SETTINGS))


@pytest.mark.parametrize("status", [400, 403])
def test_a_table_that_the_store_keeps_back_is_not_planned_as_one_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(parquet, "containers", lambda *_, **__: [(b"data/t.parquet", 5000)])
    monkeypatch.setattr(parquet, "root", lambda _: "data")
    with answering(status), pytest.raises(SourceError, match=r"data/t.parquet cannot be read: .*the credentials"):
        registry.plan_shards(Source("s3://data/t.parquet", "parquet"), 10, SETTINGS)
