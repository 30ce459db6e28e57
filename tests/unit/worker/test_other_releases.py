"""Jobs that another release has made, or that are damaged: each fails alone, by name, and its neighbours are done."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest

from clip_queue.shared import ops, submissions
from clip_queue.shared.fields import member
from clip_queue.shared.job import Inputs, Job, Kind, OnError, State
from clip_queue.shared.lane import Lane
from clip_queue.worker import app
from tests.harness import wait_for
from tests.unit.worker.executor_parts import Handler, Parts, shard

Spoil = Callable[[Parts, str], object]


def record(**fields: object) -> Spoil:
    return lambda parts, job: parts.store.client.hset(f"cq:job:{job}", mapping=fields)  # type: ignore[arg-type]


def without(field: str) -> Spoil:
    return lambda parts, job: parts.store.client.hdel(f"cq:job:{job}", field)


def inputs(data: object) -> Spoil:
    packed = data if isinstance(data, bytes) else msgpack.packb(data)
    return lambda parts, job: parts.store.client.set(f"cq:in:{job}", packed)


SPOILT = {
    "kind": (record(kind="embed_sound"), "does not know jobs of kind 'embed_sound'"),
    "a kind of another lane": (record(kind="embed_shard"), "'embed_shard' cannot be done in the lane 'interactive'"),
    "lane": (record(lane="urgent"), "does not know lane 'urgent'"),
    "on_error": (record(on_error="retry"), "does not know on_error 'retry'"),
    "no kind": (without("kind"), "no field 'kind'"),
    "no total": (without("total"), "no field 'total'"),
    "no model": (without("model"), "no field 'model'"),
    "no lane": (without("lane"), "no field 'lane'"),
    "no size and no time to live": (lambda p, j: p.store.client.hdel(f"cq:job:{j}", "kind", "size", "ttl"), "'kind'"),
    "a word for a number": (record(total="many"), "cannot be read"),
    "no JSON": (record(refused="{"), "cannot be read"),
    "JSON of another type": (record(refused="{}"), "'refused' is dict"),
    "no msgpack": (inputs(b"\xc1\xc1"), "msgpack cannot be read"),
    "half of it": (inputs(msgpack.packb({"items": ["abcdef"]})[:-3]), "msgpack cannot be read"),
    "more than it": (inputs(msgpack.packb({"items": ["a"]}) + b"a"), "msgpack cannot be read"),
    "an odd extension": (inputs({"items": ["a"], "at": msgpack.ExtType(-1 % 128, b"")}), ""),
    "a broken time": (inputs(b"\x82\xa5items\x91\xa1a\xa2at\xd4\xff\x00"), "msgpack cannot be read"),
    "too deep": (inputs(b"\x91" * 2000 + b"\xc0"), "msgpack cannot be read"),
    "no dictionary": (inputs(["a"]), "no fields of Inputs"),
    "no items": (inputs({"names": None}), "no field 'items'"),
    "empty items": (inputs({"items": []}), "no items"),
    "items of another type": (inputs({"items": {"a": 1}}), "'items' of Inputs is dict"),
    "names of another type": (inputs({"items": ["a"], "names": 3}), "'names' of Inputs is int"),
    "an item of a form of its own": (inputs({"items": [{"url": "x"}]}), "items of the form dict"),
    "an item that is an extension": (inputs({"items": [msgpack.ExtType(7, b"x")]}), "items of the form ExtType"),
    "text that is no UTF-8": (inputs(b"\x81\xa5items\x91\xa1\xff"), "msgpack cannot be read"),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT)
def test_what_cannot_be_read_fails_alone_by_name(parts: Parts, spoil: Spoil, reason: str) -> None:
    first, bad, last = (parts.accept(text) for text in "abc")
    spoil(parts, bad)
    parts.deliver(first, bad, last)
    assert [parts.look(job).state for job in (first, last)] == [State.SUCCEEDED] * 2
    ended = parts.store.client.hgetall(f"cq:job:{bad}")
    if reason:
        assert ended[b"state"] == b"failed", ended
        assert reason in ended[b"error"].decode()
    else:
        assert ended[b"state"] == b"succeeded"
    assert (parts.held(), parts.executor.leases.to_release()) == ([], [])
    assert parts.store.client.exists(f"cq:in:{bad}") == 0
    assert parts.store.client.pttl(f"cq:job:{bad}") > 0


def test_unknown_fields_are_ignored_whatever_they_hold(parts: Parts) -> None:
    job = parts.accept("a")
    record(later=b"\xff\xfe")(parts, job)
    inputs({"items": ["a"], "later": {"x": msgpack.ExtType(9, b"x")}})(parts, job)
    parts.deliver(job)
    assert parts.look(job).state is State.SUCCEEDED


def test_large_inputs_that_cannot_be_read_fail_alone_too(parts: Parts) -> None:
    good, bad = parts.accept("a"), parts.accept("b" * ops.INLINE)
    inputs(b"\xc1")(parts, bad)
    parts.deliver(bad, good)
    assert (parts.look(bad).state, parts.look(good).state) == (State.FAILED, State.SUCCEEDED)


def test_an_unknown_item_is_skipped_where_a_job_skips(parts: Parts) -> None:
    job = Job(Kind.EMBED_TEXT, parts.model.info.name, 3, on_error=OnError.SKIP, ttl=60_000)
    parts.store.execute(submissions.accept([submissions.Submission(job, Inputs(["a", {"url": "x"}, "c"]), 100)]))  # type: ignore[list-item]
    parts.deliver(job.id)
    view, result = parts.store.execute(ops.outcome(job.id))
    assert view is not None
    assert result is not None
    assert (view.job.state, view.job.done, view.job.failed) == (State.SUCCEEDED, 2, 1)
    assert [(e["code"], e["index"]) for e in result.errors] == [("unreadable", 1)]


def test_a_background_job_of_an_unknown_kind_fails_and_the_lane_goes_on(parts: Parts) -> None:
    jobs = [parts.accept("a", lane=Lane.BACKGROUND) for _ in range(3)]
    record(kind="embed_sound")(parts, jobs[1])
    parts.deliver(lane=Lane.BACKGROUND)
    assert [parts.look(job).state for job in jobs] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]


def test_a_shard_of_another_release_fails_alone(parts: Parts, handlers: list[Handler]) -> None:
    bad, unknown = shard(parts), shard(parts)
    inputs(b"\xc1")(parts, bad)
    record(kind="embed_film")(parts, unknown)
    parts.deliver(lane=Lane.BULK)
    assert not handlers
    for job, reason in ((bad, "msgpack cannot be read"), (unknown, "does not know jobs of kind 'embed_film'")):
        error = parts.look(job).error
        assert error is not None
        assert reason in error["message"]


def test_the_jobs_of_a_message_for_an_unknown_lane_fail_by_its_name(parts: Parts) -> None:
    job = parts.accept("a", lane=member(Lane, "urgent"))
    parts.deliver(job, lane=member(Lane, "urgent"))
    error = parts.look(job).error
    assert error is not None
    assert "lane 'urgent'" in error["message"]


def test_a_message_may_say_more_than_is_known(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        executor = parts.executor

    monkeypatch.setattr(app, "_worker", Worker())
    job = parts.accept("a")
    app.run(parts.model.info.name, "interactive", [job], {"of": "a later release"}, trace="x")
    wait_for(lambda: parts.look(job).state is State.SUCCEEDED, 5)


def test_a_handler_of_shards_is_not_asked_for_embeddings(parts: Parts) -> None:
    job = parts.accept("a", lane=Lane.BULK)  # no handler of this kind
    parts.deliver(lane=Lane.BULK)
    assert parts.look(job).state is State.FAILED
