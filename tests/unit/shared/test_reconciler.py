"""Reconciling the store with the queue."""

from __future__ import annotations

from clip_queue.shared import ops
from clip_queue.shared.lane import Lane
from clip_queue.shared.reconciler import GracePeriod, ReconcilePass, acquire_turn
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.submissions import Accepted
from tests.harness import wait_for

from .store_calls import HOUR, MODEL, accepted, new, offer


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


def test_a_pass_looks_at_every_job_that_runs_page_by_page(store: Store) -> None:
    jobs = [new(lane=Lane.INTERACTIVE) for _ in range(600)]  # more than a pass looks at by chance
    ids = [job.id for job in jobs if isinstance(offer(store, job, limit=1000), Accepted)]
    store.execute(ops.beat("alive", "{}", 60, []))
    store.execute(ops.claim(ids[:100], "alive", 3))
    store.execute(ops.claim(ids[100:], "dead", 3))
    seen: list[str] = []
    offset = 0
    while offset >= 0:
        page = store.execute(ops.reconcile(MODEL, offset, 3, 3, HOUR, size=50))
        seen += page.resend.get(Lane.INTERACTIVE, [])
        offset = page.offset
    assert sorted(seen) == sorted(ids[100:])


def test_one_at_a_time_reconciles(store: Store) -> None:
    assert store.execute(acquire_turn("a"))
    assert not store.execute(acquire_turn("b"))


def test_a_process_that_could_not_reach_the_store_waits_for_a_lease_before_it_takes_a_worker_for_dead() -> None:
    grace = GracePeriod(Settings(lease=0.6))
    assert not grace.over
    wait_for(lambda: grace.over, 5)
    grace.restart()
    assert not grace.over


def test_a_running_job_that_an_earlier_release_has_not_marked_is_found(store: Store) -> None:
    (job,) = accepted(store, new())
    store.execute(ops.claim([job], "dead", 3))
    store.client.zadd(f"cq:open:{MODEL}", {job: float("inf")})
    page = store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert page.resend == {Lane.BACKGROUND: [job]}


def test_a_job_of_an_earlier_release_is_due_at_once_and_then_at_its_deadline(store: Store) -> None:
    job = new()
    offer(store, job, deadline_in=HOUR)
    arrival = float(store.client.hget(f"cq:job:{job.id}", "created") or 0)
    store.client.zadd(f"cq:open:{MODEL}", {job.id: arrival})  # as 0.1.0 writes it
    store.execute(ops.reconcile(MODEL, 0, 3, 3, HOUR))
    assert store.client.zscore(f"cq:open:{MODEL}", job.id) == arrival + 1000 * HOUR
