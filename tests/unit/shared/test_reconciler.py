"""Reconciling the store with the queue."""

from __future__ import annotations

from clip_queue.shared import ops
from clip_queue.shared.lane import Lane
from clip_queue.shared.reconciler import GracePeriod, ReconcilePass, acquire_turn
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from tests.harness import wait_for

from .store_calls import HOUR, MODEL, accepted, new


def test_a_pass_sends_all_lost_interactive_jobs_and_one_message_for_the_background(store: Store) -> None:
    interactive = accepted(store, *(new(lane=Lane.INTERACTIVE) for _ in range(70)))
    accepted(store, *(new() for _ in range(70)))
    for job_id in interactive:
        store.client.hset(f"cq:job:{job_id}", "sent", 0)
    for key in store.client.keys("cq:job:*"):
        store.client.hset(key, "sent", 0)
    reconciling = ReconcilePass([MODEL, "another"], Settings())
    while (op := reconciling.op) is not None:
        reconciling.advance(store.execute(op))
    sent = {lane: [len(ids) for _, to, ids in reconciling.resend if to is lane] for lane in Lane}
    assert sent == {Lane.INTERACTIVE: [64, 6], Lane.BACKGROUND: [64], Lane.BULK: []}
    assert {i for _, to, ids in reconciling.resend if to is Lane.INTERACTIVE for i in ids} == set(interactive)


def test_a_pass_goes_through_all_pages(store: Store) -> None:
    accepted(store, *(new(lane=Lane.INTERACTIVE) for _ in range(5)))
    seen: list[str] = []
    offset = 0
    while offset >= 0:
        page = store.execute(ops.reconcile(MODEL, offset, 3, 0, HOUR, size=2))
        seen += page.resend.get(Lane.INTERACTIVE, [])
        offset = page.offset
    assert len(seen) == len(set(seen)) == 5


def test_one_at_a_time_reconciles(store: Store) -> None:
    assert store.execute(acquire_turn("a"))
    assert not store.execute(acquire_turn("b"))


def test_a_process_that_could_not_reach_the_store_waits_for_a_lease_before_it_takes_a_worker_for_dead() -> None:
    grace = GracePeriod(Settings(lease=0.6))
    assert not grace.over
    wait_for(lambda: grace.over, 5)
    grace.restart()
    assert not grace.over
