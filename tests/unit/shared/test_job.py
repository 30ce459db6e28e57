"""The life of a job, as a table."""

from __future__ import annotations

import pytest

from clip_queue.shared.job import FINAL, TRANSITIONS, Job, Kind, State
from clip_queue.shared.lane import Lane


def test_every_state_is_in_the_table_and_leads_only_to_states() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert all(after <= set(State) for after in TRANSITIONS.values())


def test_a_job_that_has_ended_never_changes() -> None:
    assert {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED} == FINAL
    assert all(not TRANSITIONS[state] for state in FINAL)


def test_only_a_running_job_can_succeed() -> None:
    assert [state for state, after in TRANSITIONS.items() if State.SUCCEEDED in after] == [State.RUNNING]


def test_whatever_is_unfinished_can_be_cancelled_expire_and_fail() -> None:
    for state in set(State) - FINAL:
        assert TRANSITIONS[state] >= {State.CANCELLED, State.EXPIRED, State.FAILED}


def test_every_state_can_be_reached_from_the_first() -> None:
    reached, edge = set[State](), {State.QUEUED}
    while edge:
        reached |= edge
        edge = {after for state in edge for after in TRANSITIONS[state]} - reached
    assert reached == set(State)


def test_a_new_job_waits_in_the_interactive_lane_with_an_id_of_its_own() -> None:
    jobs = [Job(Kind.EMBED_TEXT, "m", 1) for _ in range(100)]
    assert {job.state for job in jobs} == {State.QUEUED}
    assert {job.lane for job in jobs} == {Lane.INTERACTIVE}
    assert len({job.id for job in jobs}) == 100
    assert all(len(bytes.fromhex(job.id)) == 16 for job in jobs)


@pytest.mark.parametrize("kind", [State, Kind, Lane])
def test_words_on_the_wire_are_the_enumerations_values(kind: type[State] | type[Kind] | type[Lane]) -> None:
    assert all(str(member) == member.value == member for member in kind)
