"""How many bytes jobs may hold in the store: together, and each owner (``shared/lua/held.lua`` counts them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_queue.shared.errors import ClipError, StoreFull, TooLarge
from clip_queue.shared.job import Job, JobResult, Kind
from clip_queue.shared.settings import Settings
from clip_queue.shared.wire import pack_result

RECORD = 768  # bytes of a record with its keys, about (``held.lua`` has the same)
ROW = 4096  # bytes that are kept free for the result of each item: 1,024 dimensions
MAX_RESULT = 256 * 2**20  # largest result that is written, bytes; Redis itself takes 512 MiB


@dataclass(frozen=True)
class ByteLimits:
    """``total``: most bytes together (0: by the server's memory, below 0: any number). ``share``: of one owner."""

    total: int = -1
    share: float = 1.0

    @staticmethod
    def of(settings: Settings) -> ByteLimits:
        # Where nobody else can come, nobody is kept out.
        share = settings.max_owner_share if len(settings.api_keys) > 1 else 1.0
        return ByteLimits(settings.max_store_bytes, share)


UNLIMITED = ByteLimits()


def weight(job: Job, inputs: bytes) -> int:
    """The bytes that an unfinished job counts for: its record, its packed inputs, and room for its result."""
    rows = job.total if job.kind in (Kind.EMBED_IMAGE, Kind.EMBED_TEXT) else 0
    return RECORD + len(inputs) + ROW * rows


def refusal(reply: list[Any], needed: int) -> ClipError:
    """The error of a submission that the script ``accept`` refused with ``{'held', owner, held, limit, seconds}``."""
    own, (held, limit, seconds) = reply[1] != b"*", map(int, reply[2:5])
    if own:
        whose, setting = "the jobs and results of this key", "settings max_store_bytes and max_owner_share"
    else:
        whose, setting = "all jobs and results together", "setting max_store_bytes"
    bound = f"{whose} may hold {limit} bytes of the store ({setting})"
    if needed > limit:
        return TooLarge(f"The job counts for {needed} bytes, but {bound}.")
    return StoreFull(
        f"The job counts for {needed} bytes, {held} are held, and {bound}; try again when results have expired.",
        retry_after=seconds,
    )


def bounded(result: JobResult) -> tuple[JobResult, bytes]:
    """A result and its bytes; one that is too large for the store is replaced by the error that says so."""
    packed = pack_result(result)
    if len(packed) <= MAX_RESULT:
        return result, packed
    error = TooLarge(f"The result has {len(packed)} bytes; the store takes at most {MAX_RESULT}.")
    result = JobResult(error=error.to_wire(), timings=result.timings)
    return result, pack_result(result)
