"""What is written to Redis, and reading what another release has written."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgpack
import pytest

from clip_queue.shared.errors import Unreadable
from clip_queue.shared.fields import known_fields
from clip_queue.shared.job import Inputs, JobResult
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.wire import (
    pack_inputs,
    pack_result,
    pack_timings,
    record,
    unpack_inputs,
    unpack_reply,
    unpack_result,
    unpack_timings,
)
from clip_queue.shared.workers import WorkerInfo

# As release 0.1.0 wrote them.
OLD_MODEL: dict[str, Any] = {
    "name": "emoji-mini",
    "source": "shipped:emoji-mini",
    "fingerprint": "0123456789abcdef",
    "dimension": 128,
    "context_length": 32,
    "image_size": [64, 64],
    "precision": "fp32",
    "resize": "exact",
    "jpeg_draft": 0.0,
}
OLD_WORKER: dict[str, Any] = {
    "id": "host-1-abcd",
    "host": "host",
    "pid": 1,
    "device": "cpu",
    "started": 1750000000.5,
    "models": [OLD_MODEL],
    "rate": 12.5,
    "items": 100,
    "batches": 7,
    "busy": 3.5,
    "work": ["embed_shard"],
}
OLD_RESULT: dict[str, Any] = {
    "fingerprint": "0123456789abcdef",
    "vectors": b"\0\0\x80\x3f",
    "dimension": 1,
    "similarity": None,
    "names": None,
    "errors": [{"code": "bad_image", "message": "no image", "index": 1}],
    "error": None,
    "timings": {"queue": 0.1, "forward": 0.2},
}

OLD_RECORD = {"id": "a" * 32, "kind": "embed_text", "model": "m", "lane": "bulk", "state": "succeeded", "total": "1"}


@pytest.mark.parametrize(
    "inputs", [Inputs(["Größe 🙂", b"\xff\0"]), Inputs(["a", "b"], ["x"]), Inputs([bytes(2**21)])], ids=range(3)
)
def test_inputs_come_back_as_they_were(inputs: Inputs) -> None:
    assert unpack_inputs(pack_inputs(inputs)) == inputs


def test_results_come_back_as_they_were() -> None:
    for result in (
        JobResult(),
        JobResult("f", b"\0" * 8, 2, [0.5], ["x"], [{"index": 0}], {"code": "x"}, {"wait": 1.0}),
    ):
        assert unpack_result(pack_result(result)) == result


def test_the_times_of_a_job_are_short_and_read_back_to_the_microsecond() -> None:
    timings = {"queue": 86_399.123, "prepare": 0.000123456, "wait": 0.0, "forward": 12.3}
    written = pack_timings(timings)
    assert len(written) <= 64, "above, Redis keeps a record field by field"
    assert unpack_timings(written) == pytest.approx(timings, abs=1e-6)
    assert unpack_timings(pack_timings({})) == {}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {}),
        ({"timings": '{"queue": 0.1, "forward": 0.2}'}, {"queue": 0.1, "forward": 0.2}),  # as release 0.1.0 wrote them
        ({"took": "queue 100000 forward 200000"}, {"queue": 0.1, "forward": 0.2}),
        ({"took": ""}, {}),
    ],
)
def test_the_times_of_a_record(fields: dict[str, str], wanted: dict[str, float]) -> None:
    assert record(OLD_RECORD | fields).timings == wanted


@pytest.mark.parametrize("damaged", ["queue", "queue 1 wait", "queue x", "1 queue"])
def test_damaged_times_are_an_error_that_says_so(damaged: str) -> None:
    with pytest.raises(Unreadable, match=r"^The job's record cannot be read"):
        record({**OLD_RECORD, "took": damaged})


def test_a_reply_is_an_id_and_a_result_or_only_an_id() -> None:
    assert unpack_reply(b"a" * 32 + b"result") == ("a" * 32, b"result")
    assert unpack_reply(b"a" * 32) == ("a" * 32, b"")


def test_what_release_0_1_0_wrote_is_read() -> None:
    assert unpack_inputs(msgpack.packb({"items": ["a", b"\xff"], "names": None})) == Inputs(["a", b"\xff"])
    assert unpack_result(msgpack.packb(OLD_RESULT)) == JobResult(**OLD_RESULT)
    worker = WorkerInfo.unpack(msgpack.packb(OLD_WORKER))
    assert (worker.id, worker.rate, worker.items, worker.busy) == ("host-1-abcd", 12.5, 100, 3.5)
    assert worker.work == ["embed_shard"]
    assert worker.models == [ModelInfo.from_json(OLD_MODEL)]
    assert worker.models[0].image_size == (64, 64)


def test_fields_with_a_default_may_be_missing() -> None:
    required = ("name", "source", "fingerprint", "dimension", "context_length", "image_size", "precision")
    model = ModelInfo.from_json({name: OLD_MODEL[name] for name in required})
    assert (model.resize, model.jpeg_draft) == ("exact", 0.0)
    first = ("id", "host", "pid", "device")
    worker = WorkerInfo.unpack(msgpack.packb({**{name: OLD_WORKER[name] for name in first}, "models": []}))
    assert (worker.rate, worker.items, worker.work) == (0.0, 0, [])


def test_unknown_fields_of_a_later_release_are_ignored() -> None:
    later = {"of_a_later_release": 1}
    assert unpack_inputs(msgpack.packb({"items": ["a"], **later})) == Inputs(["a"])
    assert unpack_result(msgpack.packb({**OLD_RESULT, **later})) == JobResult(**OLD_RESULT)
    model = ModelInfo.from_json({**OLD_MODEL, **later})
    assert model == ModelInfo.from_json(OLD_MODEL)
    assert WorkerInfo.unpack(msgpack.packb({**OLD_WORKER, **later, "models": [{**OLD_MODEL, **later}]})).models == [
        model
    ]
    assert known_fields(Inputs, {"items": [], **later}) == {"items": []}


def test_release_0_1_0_can_read_a_worker() -> None:
    """It requires these fields of a worker, and knows no other fields of a model."""
    worker = WorkerInfo("w", "host", 1, "cpu", models=[ModelInfo.from_json(OLD_MODEL)])
    written = msgpack.unpackb(worker.pack())
    assert {"id", "host", "pid", "device", "started"} <= written.keys()
    assert isinstance(written["started"], float)
    assert written["models"][0].keys() == OLD_MODEL.keys()
    assert WorkerInfo.unpack(worker.pack()) == worker


def test_a_model_comes_back_as_it_was() -> None:
    model = ModelInfo.from_json({**OLD_MODEL, "resize": "fast", "jpeg_draft": 2.0})
    assert ModelInfo.from_json(asdict(model)) == model
