"""The histograms of stages, and what another release may have written."""

from __future__ import annotations

from typing import Any

import pytest

from clip_queue.shared.stages import BOUNDS, StageTimes, from_wire


def test_each_stage_of_a_model_has_its_histogram() -> None:
    times = StageTimes()
    times.add("m", "interactive", "embed_text", {"queue": 0.002, "forward": 0.05})
    times.add("m", "interactive", "embed_text", {"queue": 99.0})
    times.add("m", "background", "embed_text", {"queue": BOUNDS[0]})
    found = {key: histogram for *key_, histogram in from_wire(times.to_wire()) for key in [tuple(key_)]}
    assert set(found) == {
        ("m", "interactive", "embed_text", "queue"),
        ("m", "interactive", "embed_text", "forward"),
        ("m", "background", "embed_text", "queue"),
    }
    queue = found["m", "interactive", "embed_text", "queue"]
    assert queue.total == 99.002
    assert (queue.counts[1], queue.counts[-1], sum(queue.counts)) == (1, 1, 2)
    assert found["m", "background", "embed_text", "queue"].counts[0] == 1  # a bound belongs to the bucket below it


@pytest.mark.parametrize(
    "odd", [None, 7, [], ["m"], ["m", "l", "k", "s", "x", [1] * 15], ["m", "l", "k", "s", 1.0, [1]]]
)
def test_what_cannot_be_read_is_passed_over(odd: Any) -> None:
    good = ["m", "l", "k", "s", 1.0, [1] * (len(BOUNDS) + 1)]
    assert len(list(from_wire([odd, good]))) == 1
