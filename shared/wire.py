"""How inputs and answers are written in Redis: msgpack of plain types, no pickle."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgpack

from clip_queue.shared.job import Answer, Inputs

ID_LENGTH = 32


def pack_inputs(inputs: Inputs) -> bytes:
    return _pack({"items": inputs.items, "names": inputs.names})


def unpack_inputs(data: bytes) -> Inputs:
    return Inputs(**_unpack(data))


def pack_answer(answer: Answer) -> bytes:
    return _pack({f.name: getattr(answer, f.name) for f in fields(answer)})


def unpack_answer(data: bytes) -> Answer:
    known = {f.name for f in fields(Answer)}
    return Answer(**{k: v for k, v in _unpack(data).items() if k in known})


def pack_note(job_id: str, answer: bytes) -> bytes:
    """A message on a reply list: the job's id, then its answer, or nothing where the record must be read."""
    return job_id.encode() + answer


def unpack_note(data: bytes) -> tuple[str, bytes]:
    return data[:ID_LENGTH].decode("ascii", "replace"), data[ID_LENGTH:]


def _pack(value: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(data: bytes) -> dict[str, Any]:
    # A blob read back is as large as the one written: msgpack's own default limits are below what is allowed in.
    value: dict[str, Any] = msgpack.unpackb(data, raw=False, max_bin_len=len(data), max_str_len=len(data))
    return value
