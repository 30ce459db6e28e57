"""The encoding of jobs in Redis: a hash for the record, msgpack of plain types for inputs and results, no pickle.

Unknown fields are ignored and unknown words are kept as they are, so a process can read the data of the next release.
What cannot be read raises :class:`Unreadable`, which says what of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

import msgpack

from clip_queue.shared.errors import Unreadable
from clip_queue.shared.fields import member, read
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, OnError, State
from clip_queue.shared.lane import Lane

ID_LENGTH = 32  # characters of a job's id

_OF_RESULT = tuple(field.name for field in fields_of(JobResult))
_NUMBERS = ("created", "started", "finished", "deadline", "expires", "ttl", "attempts", "done", "failed")


def pack_inputs(inputs: Inputs) -> bytes:
    cut = {"cut": True} if inputs.cut else {}
    return _pack({"items": inputs.items, "names": inputs.names, **cut})


def unpack_inputs(data: bytes) -> Inputs:
    return read(Inputs, _unpack(data))


def pack_result(result: JobResult) -> bytes:
    return _pack({name: getattr(result, name) for name in _OF_RESULT})


def unpack_result(data: bytes) -> JobResult:
    return read(JobResult, _unpack(data))


def record(fields: list[Any] | dict[Any, Any]) -> Job:
    """The record of a job from its Redis hash."""
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    # Without a function call for each: a worker reads twenty fields of each job.
    raw = {
        name if isinstance(name, str) else str(name, "utf-8", "replace"): (
            value if isinstance(value, str) else str(value, "utf-8", "replace")
        )
        for name, value in pairs
    }
    try:
        return _job(raw)
    except KeyError as error:
        raise Unreadable(f"The job's record has no field {error}.") from None
    except (ValueError, TypeError) as error:
        raise Unreadable(f"The job's record cannot be read ({error}).") from None


def _job(raw: dict[str, str]) -> Job:
    return Job(
        id=raw["id"],
        kind=member(Kind, raw["kind"]),
        model=raw["model"],
        lane=member(Lane, raw["lane"]),
        state=member(State, raw["state"]),
        total=int(raw.get("rows", raw["total"])),
        owner=raw.get("owner", ""),
        reply=raw.get("reply", ""),
        on_error=member(OnError, raw.get("on_error", OnError.FAIL)),
        worker=raw.get("worker", ""),
        error=_json(raw, "error", dict) or None,
        timings=unpack_timings(raw["took"]) if raw.get("took") else _json(raw, "timings", dict),  # 0.1.0 wrote JSON
        progress=_json(raw, "progress", dict) or None,
        refused=_json(raw, "refused", list),
        trace=raw.get("trace", ""),
        **{name: int(raw[name]) for name in _NUMBERS if name in raw},
    )


def pack_timings(timings: Mapping[str, float]) -> str:
    """Stages and their µs, in words: a record whose fields have up to 64 bytes takes half the memory in Redis."""
    return " ".join(f"{stage} {1e6 * seconds:.0f}" for stage, seconds in timings.items())


def unpack_timings(text: str) -> dict[str, float]:
    """Seconds of each stage."""
    words = text.split()
    return {stage: int(number) / 1e6 for stage, number in zip(words[::2], words[1::2], strict=True)}


def _json(raw: dict[str, str], name: str, kind: type[Any]) -> Any:
    value = json.loads(raw[name]) if raw.get(name) else None
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"field {name!r} is {type(value).__name__}")
    return kind() if value is None else value


def unpack_reply(data: bytes) -> tuple[str, bytes]:
    """A message of a reply list: the job's id and its packed result. The result is empty if it is only in the store."""
    return data[:ID_LENGTH].decode("ascii", "replace"), data[ID_LENGTH:]


def _pack(value: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(data: bytes) -> Any:
    # msgpack's default limits are lower than those of the settings, which were checked before the data was written.
    try:
        return msgpack.unpackb(data, raw=False, max_bin_len=len(data), max_str_len=len(data))
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # the last two: odd extensions, too deep
        raise Unreadable(f"{len(data)} bytes of msgpack cannot be read ({type(error).__name__})") from None
