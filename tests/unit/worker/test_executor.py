"""The engine between store and batcher, with a model that computes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fakeredis
import numpy as np
import pytest

from clip_queue.shared import ops
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import Inputs, Job, Kind, Lane, State
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op, Store
from clip_queue.worker.executor.executor import Engine
from tests.harness import wait_for

MODEL = "emoji-mini"


class Model:
    """In place of :class:`clip_queue.worker.inference.clip_model.Clip`: a text's vector is its length."""

    fingerprint, precision, crop, draft = "f", "fp32", None, 0
    info = SimpleNamespace(name=MODEL, source="none")

    def __init__(self, *_: object) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def tokenizer(self, text: str) -> list[str]:
        if text == "choke":
            raise LookupError(text)
        return list(text)

    def embed_texts(self, texts: Any) -> Any:
        self.batches.append([len(t) for t in texts])
        self.gate.wait(10)
        return SimpleNamespace(result=lambda: np.array([[len(t)] for t in texts], dtype=np.float32))


class Losing(Store):
    """A store whose connection breaks after the next operation was carried out, and before its reply came."""

    losing = False

    def run(self, op: Op[Any]) -> Any:
        out = super().run(op)
        if self.losing:
            self.losing = False
            raise Unavailable("lost")
        return out


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("clip_queue.worker.executor.executor.Clip", Model)
    it = Engine(Settings(device="cpu"), "w")
    it._store = Losing(fakeredis.FakeRedis())
    it.start()
    yield it
    model(it).gate.set()
    it.stop()


def model(engine: Engine) -> Model:
    return engine.clips[MODEL]  # type: ignore[return-value]


def accept(engine: Engine, *texts: str, lane: Lane = Lane.INTERACTIVE) -> str:
    job = Job(Kind.EMBED_TEXT, MODEL, len(texts), lane, ttl=60_000)
    engine._store.run(ops.accept([ops.Submission(job, Inputs([*texts]), 1000)]))
    return job.id


def look(engine: Engine, job_id: str) -> Job:
    return engine._store.run(ops.view(job_id)).job


def test_jobs_whose_claim_was_not_heard_of_are_given_back(engine: Engine) -> None:
    job = accept(engine, "a")
    engine._store.losing = True  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        engine.deliver(MODEL, Lane.INTERACTIVE, [job])
    assert look(engine, job).state is State.RUNNING, "ours, and no thread knows"
    engine._store.run(ops.release(engine.held.orphans(), engine.id))
    assert (look(engine, job).state, look(engine, job).attempts) == (State.QUEUED, 0)
    engine.deliver(MODEL, Lane.INTERACTIVE, [job])
    assert look(engine, job).state is State.SUCCEEDED


def test_jobs_that_wait_for_their_turn_in_a_delivery_are_in_its_heartbeats(engine: Engine) -> None:
    model(engine).gate.clear()
    first = accept(engine, *map(str, range(4 * 32 + 40)))  # more than the engine has room for
    second = accept(engine, "second")
    thread = threading.Thread(target=engine.deliver, args=(MODEL, Lane.INTERACTIVE, [first, second]))
    thread.start()
    wait_for(lambda: model(engine).batches, 5)
    assert look(engine, second).state is State.RUNNING
    assert sorted(job_id for job_id, _, _ in engine.held.progress()) == sorted([first, second])
    model(engine).gate.set()
    thread.join(10)
    assert engine.held.progress() == []


def test_a_job_without_inputs_is_held_no_longer_than_it_takes_to_fail_it(engine: Engine) -> None:
    job = accept(engine, "a")
    engine._store.client.delete(f"cq:in:{job}")
    engine.deliver(MODEL, Lane.INTERACTIVE, [job])
    assert look(engine, job).state is State.FAILED
    assert engine.held.progress() == []


def test_an_ending_whose_reply_was_lost_is_told_again_and_counts_once(engine: Engine) -> None:
    job = accept(engine, "a")
    model(engine).gate.clear()
    thread = threading.Thread(target=engine.deliver, args=(MODEL, Lane.INTERACTIVE, [job]))
    thread.start()
    wait_for(lambda: model(engine).batches, 5)
    engine._store.losing = True  # type: ignore[attr-defined]
    model(engine).gate.set()
    thread.join(10)
    assert look(engine, job).state is State.SUCCEEDED
    assert engine.held.progress() == []


def test_a_text_that_a_tokenizer_chokes_on_fails_alone(engine: Engine) -> None:
    good, bad, skipping = accept(engine, "a"), accept(engine, "a", "choke"), accept(engine, "b")
    engine.deliver(MODEL, Lane.INTERACTIVE, [good, bad, skipping])
    assert [look(engine, job).state for job in (good, bad, skipping)] == [
        State.SUCCEEDED,
        State.FAILED,
        State.SUCCEEDED,
    ]
    error = look(engine, bad).error
    assert error is not None
    assert (error["code"], error["index"]) == ("internal", 1)
    assert engine.held.orphans() == []


def test_jobs_on_their_last_attempt_run_one_at_a_time(engine: Engine) -> None:
    suspects = [accept(engine, "x" * n) for n in (1, 2, 3)]
    fresh = [accept(engine, "x" * n) for n in (4, 5, 6)]
    for job in suspects:
        engine._store.client.hset(f"cq:job:{job}", "attempts", 2)
    model(engine).gate.clear()
    threads = [
        threading.Thread(target=engine.deliver, args=(MODEL, Lane.INTERACTIVE, jobs))
        for jobs in ([suspects[0], *fresh], suspects[1:])
    ]
    for thread in threads:
        thread.start()
    most = 0

    def over() -> bool:
        nonlocal most
        running = [job for job in suspects if look(engine, job).state is State.RUNNING]
        most = max(most, len(running))
        if running:  # seen: now it may end
            model(engine).gate.set()
        return all(look(engine, job).state is State.SUCCEEDED for job in suspects + fresh)

    wait_for(over, 20)
    for thread in threads:
        thread.join(5)
    assert all(len(set(batch) & {1, 2, 3}) <= 1 for batch in model(engine).batches), model(engine).batches
    assert most == 1
    assert [look(engine, job).attempts for job in suspects] == [3, 3, 3]


def test_background_messages_beyond_the_slots_return_at_once_and_the_line_is_worked_off(engine: Engine) -> None:
    jobs = [accept(engine, "x" * n, lane=Lane.BACKGROUND) for n in range(1, 200)]
    model(engine).gate.clear()
    slots = [threading.Thread(target=engine.deliver, args=(MODEL, Lane.BACKGROUND, jobs[:1])) for _ in range(2)]
    for slot in slots:
        slot.start()
    free = engine._slots[Lane.BACKGROUND]
    wait_for(lambda: not free.acquire(blocking=False) or free.release(), 5)
    engine.deliver(MODEL, Lane.BACKGROUND, jobs[-1:])  # a third message: does not wait for the gate
    model(engine).gate.set()
    for slot in slots:
        slot.join(20)
    assert {look(engine, job).state for job in jobs} == {State.SUCCEEDED}
