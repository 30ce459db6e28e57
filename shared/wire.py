"""The encoding of jobs in Redis: a hash for the record, msgpack of plain types for inputs and results, no pickle.

Unknown fields are ignored, so a process can read the data of the next release.
"""

from __future__ import annotations

import json
from dataclasses import fields as fields_of
from typing import Any

import msgpack

from clip_queue.shared.fields import known_fields
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, OnError, State
from clip_queue.shared.lane import Lane

ID_LENGTH = 32  # characters of a job's id


def pack_inputs(inputs: Inputs) -> bytes:
    return _pack({"items": inputs.items, "names": inputs.names})


def unpack_inputs(data: bytes) -> Inputs:
    return Inputs(**known_fields(Inputs, _unpack(data)))


def pack_result(result: JobResult) -> bytes:
    return _pack({f.name: getattr(result, f.name) for f in fields_of(result)})


def unpack_result(data: bytes) -> JobResult:
    return JobResult(**known_fields(JobResult, _unpack(data)))


def record(fields: list[Any] | dict[Any, Any]) -> Job:
    """The record of a job from its Redis hash."""
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    raw = {k.decode(): v.decode() for k, v in pairs}
    numbers = ("created", "started", "finished", "deadline", "expires", "ttl", "attempts", "done", "failed")
    return Job(
        id=raw["id"],
        kind=Kind(raw["kind"]),
        model=raw["model"],
        lane=Lane(raw["lane"]),
        state=State(raw["state"]),
        total=int(raw.get("rows", raw["total"])),
        owner=raw.get("owner", ""),
        reply=raw.get("reply", ""),
        on_error=OnError(raw.get("on_error", OnError.FAIL)),
        worker=raw.get("worker", ""),
        error=json.loads(raw["error"]) if raw.get("error") else None,
        timings=json.loads(raw["timings"]) if raw.get("timings") else {},
        progress=json.loads(raw["progress"]) if raw.get("progress") else None,
        refused=json.loads(raw["refused"]) if raw.get("refused") else [],
        **{n: int(raw.get(n, 0)) for n in numbers},
    )


def unpack_reply(data: bytes) -> tuple[str, bytes]:
    """A message of a reply list: the job's id and its packed result. The result is empty if it is only in the store."""
    return data[:ID_LENGTH].decode("ascii", "replace"), data[ID_LENGTH:]


def _pack(value: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(data: bytes) -> dict[str, Any]:
    # msgpack's default limits are lower than those of the settings, which were checked before the data was written.
    value: dict[str, Any] = msgpack.unpackb(data, raw=False, max_bin_len=len(data), max_str_len=len(data))
    return value
