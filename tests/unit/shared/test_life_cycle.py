"""The states of a job as a state machine, on fakeredis.

The test takes a minute on a busy machine, so it is marked slow: ``-m "not slow"`` leaves it out.
"""

from __future__ import annotations

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from clip_queue.shared.store import Store
from tests.store_machine import StoreMachine

RUNS = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class OnFakeRedis(StoreMachine):
    def connect(self) -> Store:
        return Store(fakeredis.FakeRedis())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_interleaving_of_the_stores_operations_keeps_the_transition_table() -> None:
    run_state_machine_as_test(OnFakeRedis, settings=RUNS)
