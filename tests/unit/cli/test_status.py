"""``clip-queue status``: from Prometheus's text to what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from clip_queue.cli import status
from clip_queue.cli.service import Service, ServiceError
from clip_queue.cli.status import Lane, Worker

from .printing import console, printed

TEXT = """\
# TYPE clip_queue_store_up gauge
clip_queue_store_up 1.0
# TYPE clip_queue_items gauge
clip_queue_items{lane="interactive",model="[red]m:1/x"} 3.0
clip_queue_items{lane="bulk",model="[red]m:1/x"} 0.0
# TYPE clip_queue_waiting_jobs gauge
clip_queue_waiting_jobs{lane="interactive",model="[red]m:1/x"} 2.0
# TYPE clip_queue_oldest_waiting_seconds gauge
clip_queue_oldest_waiting_seconds{lane="interactive",model="[red]m:1/x"} 1.25
# TYPE clip_queue_jobs_ended counter
clip_queue_jobs_ended_total{lane="interactive",model="[red]m:1/x",state="succeeded"} 1234.0
clip_queue_jobs_ended_total{lane="interactive",model="[red]m:1/x",state="failed"} 0.0
# TYPE clip_queue_items_limit gauge
clip_queue_items_limit 1000.0
# TYPE clip_queue_held_bytes gauge
clip_queue_held_bytes 1.048576e+06
# TYPE clip_queue_workers gauge
clip_queue_workers{device="cuda:0",model="[red]m:1/x"} 2.0
clip_queue_workers{device="",model="idle"} 0.0
# TYPE clip_queue_worker_items counter
clip_queue_worker_items_total{worker="w-1"} 640.0
# TYPE clip_queue_worker_batches counter
clip_queue_worker_batches_total{worker="w-1"} 10.0
# TYPE clip_queue_worker_busy_seconds counter
clip_queue_worker_busy_seconds_total{worker="w-1"} 2.5
# TYPE clip_queue_worker_rate gauge
clip_queue_worker_rate{worker="w-1"} 256.0
# TYPE clip_queue_bulk_runs gauge
clip_queue_bulk_runs{model="[red]m:1/x"} 2.0
clip_queue_bulk_runs{model="idle"} 0.0
# TYPE clip_queue_bulk_rows_per_second gauge
clip_queue_bulk_rows_per_second{model="[red]m:1/x"} 12.5
clip_queue_bulk_rows_per_second{model="idle"} 0.0
# TYPE clip_queue_bulk_stalled_seconds gauge
clip_queue_bulk_stalled_seconds{model="[red]m:1/x"} 75.0
clip_queue_bulk_stalled_seconds{model="idle"} 0.0
# TYPE clip_queue_something_of_a_later_release gauge
clip_queue_something_of_a_later_release{of="it"} 1.0
"""
MODEL = "[red]m:1/x"


def test_what_is_read() -> None:
    read = status.parse(TEXT, "http://x", None, None)
    assert read.store
    assert read.workers_of == {MODEL: {"cuda:0": 2}, "idle": {}}
    assert read.lanes == [
        Lane(MODEL, "interactive", 3, 2, 1.25, {"succeeded": 1234, "failed": 0}),
        Lane(MODEL, "bulk", 0, 0, 0.0, {}),
    ]
    assert read.workers == [Worker("w-1", 640, 10, 2.5, 256.0)]
    assert read.limits == {"items": 1000, "held_bytes": None, "redis_bytes": None}
    assert (read.held_bytes, read.redis_bytes) == (2**20, None)
    assert read.datasets == {MODEL: {"runs": 2, "rows_per_s": 12.5, "stalled_s": 75}}
    assert "taken" not in read.to_json()


def test_how_fast_it_goes_is_told_from_two_looks() -> None:
    first = status.parse(TEXT, "http://x", None, None)
    before = replace(first, workers=[replace(first.workers[0], items=440)], taken=first.taken - 2.0)
    assert 90 < (status.parse(TEXT, "http://x", None, before).workers[0].now or 0) <= 100
    other = replace(before, workers=[replace(first.workers[0], id="w-0")])
    assert status.parse(TEXT, "http://x", None, other).workers[0].now is None, "it has just begun"


def test_what_is_shown() -> None:
    on = console()
    on.print(status.picture(status.parse(TEXT, "http://x", "[bold] a reason", None)))
    shown = printed(on)
    assert "http://x not ready: [bold] a reason" in shown
    assert "hold 1.0 MiB; Redis' memory not told; workers lost so far: 0" in shown
    (line,) = [line for line in shown.splitlines() if "interactive" in line]
    assert line.split() == f"{MODEL} 2 on cuda:0 interactive 3 of 1,000 2 1.2 s 1,234 succeeded".split()
    (worker,) = [line for line in shown.splitlines() if line.strip().startswith("w-1")]
    assert worker.split() == ["w-1", "640", "10", "64.0", "2.5", "s", "256.0", "-"]


def test_datasets_are_shown_while_they_are_under_way() -> None:
    def shown(text: str) -> str:
        on = console()
        on.print(status.picture(status.parse(text, "http://x", None, None)))
        return printed(on)

    assert f"datasets of {MODEL}: 2 under way, 12 rows/s, no row for 75 s" in shown(TEXT)
    assert "12 rows/s\n" in shown(TEXT.replace("} 75.0", "} 3.0"))
    assert "datasets" not in shown(TEXT.replace("} 2.0\nclip_queue_bulk_runs", "} 0.0\nclip_queue_bulk_runs"))


def test_a_model_without_lanes_or_workers_is_shown() -> None:
    on = console()
    on.print(status.picture(status.parse(TEXT, "http://x", None, None)))
    (line,) = [line for line in printed(on).splitlines() if line.strip().startswith("idle")]
    assert line.split() == ["idle", "none"]


def test_without_the_store_nothing_else_is_claimed() -> None:
    on = console()
    on.print(status.picture(status.parse("clip_queue_store_up 0.0\n", "http://x", None, None)))
    assert "The job store does not answer" in printed(on)
    assert "hold" not in printed(on)


def test_what_is_watched_is_printed_at_each_look_where_nobody_sees_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    on = console()

    def watch(_: object) -> Iterator[ServiceError]:
        for number in range(3):
            looks.append(printed(on))
            yield ServiceError(f"look {number}")
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "watch", watch)
    with pytest.raises(KeyboardInterrupt):
        status.show(on, cast("Service", None), as_json=False, watching=True)
    assert looks == ["", "look 0\n", "look 0\nlook 1\n"]
