"""The store's life cycle against fakeredis."""

from __future__ import annotations

import fakeredis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from clip_queue.shared.store import Store
from tests.store_machine import StoreMachine

RUNS = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class OnFakeRedis(StoreMachine):
    def connect(self) -> Store:
        return Store(fakeredis.FakeRedis())


def test_every_interleaving_of_the_stores_operations_keeps_the_transition_table() -> None:
    run_state_machine_as_test(OnFakeRedis, settings=RUNS)
