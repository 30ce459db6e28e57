"""The store's life cycle against a real Valkey."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from tests.harness import Stack
from tests.store_machine import StoreMachine

RUNS = settings(max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
def test_every_interleaving_of_the_stores_operations_keeps_the_transition_table(own_stack: Stack) -> None:
    store = Store.connect(Settings(redis_url=own_stack.valkey.url, redis_timeout=30))  # type: ignore[arg-type]

    class OnValkey(StoreMachine):
        def connect(self) -> Store:
            return store

    try:
        run_state_machine_as_test(OnValkey, settings=RUNS)
    finally:
        store.close()
