"""Leases on what one command at a time may do in an output. The test moves the clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pytest

from clip_queue.bulk.output import output_lease
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.output_lease import STALE, OutputLease
from tests.harness import wait_for

QUICK = 0.02  # seconds between the beats of a lease


@pytest.fixture(params=["here", "store"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Output]:
    if request.param == "here":
        yield Output(str(tmp_path / "out"))
        return
    yield Output(f"memory://leases/{tmp_path.name}")
    fsspec.filesystem("memory").store.clear()


def on_another_machine(output: Output, name: str, **about: object) -> None:
    """What a command on another machine has left."""
    output.write(f".leases/{name}", orjson.dumps({"host": "node7", "machine": "another", "pid": 1, **about}))


def test_of_many_at_once_one_has_it_and_the_next_when_it_lets_go(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    with ExitStack() as held:
        some = [held.enter_context(OutputLease(output, "plan")) for _ in range(12)]
        took: list[bool] = []
        begin = threading.Barrier(len(some))

        def take(lease: OutputLease) -> None:
            begin.wait(10)
            took.append(lease.take())

        threads = [threading.Thread(target=take, args=(lease,)) for lease in some]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(took) == [False] * 11 + [True]
    with OutputLease(output, "plan") as lease:
        assert lease.take()
    assert output.listed(".leases") == set()


def test_claims_of_two_names_are_two(output: Output) -> None:
    with OutputLease(output, "part-1-of-2") as one, OutputLease(output, "part-2-of-2") as other:
        assert one.take()
        assert other.take()


def test_one_that_changes_is_alive_and_one_that_does_not_is_taken_over(output: Output) -> None:
    clock = 0.0
    on_another_machine(output, "plan.1", beats=1)
    with OutputLease(output, "plan", now=lambda: clock) as lease:
        assert not lease.take()
        assert (lease.holder, lease.is_alive) == ("node7", False)
        on_another_machine(output, "plan.1", beats=2)
        assert not lease.take()
        assert lease.is_alive
        clock += STALE - 1
        assert not lease.take()
        clock += 2
        assert lease.take()
        assert output.listed(".leases") == {"plan.1", "plan.2"}
    assert output.listed(".leases") == set()


def test_one_of_a_process_of_this_machine_that_has_ended_is_taken_over_at_once(output: Output) -> None:
    machine = output_lease._machine()
    on_another_machine(output, "plan.3", machine=machine, pid=2**22 + 1)  # beyond the largest there is
    with OutputLease(output, "plan") as lease:
        assert lease.take()
        assert output.listed(".leases") == {"plan.3", "plan.4"}


def test_its_holder_writes_it_anew_and_learns_that_it_was_taken_over(output: Output) -> None:
    with OutputLease(output, "plan", beat=QUICK) as lease:
        assert lease.take()
        first = output.read(".leases/plan.1")
        wait_for(lambda: output.read(".leases/plan.1") != first, 20, "a beat")
        assert not lease.is_lost
        on_another_machine(output, "plan.2")
        wait_for(lambda: lease.is_lost, 20, "its loss")
    assert "plan.2" in output.listed(".leases"), "what is another's is left"


def test_a_claim_that_is_cut_short_is_nobody_s_yet(output: Output) -> None:
    output.write(".leases/plan.1", b'{"host')
    clock = 0.0
    with OutputLease(output, "plan", now=lambda: clock) as lease:
        assert not lease.take()
        clock = STALE + 1
        assert lease.take()


class Careless:
    """A store that writes whatever is there, and one whose client does not know of the question."""

    def __init__(self, store: Any, error: type[Exception] | None) -> None:
        self._store, self._error = store, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        if self._error:
            raise self._error("mode")
        self._store.pipe_file(path, value)


@pytest.mark.parametrize("error", [None, NotImplementedError, TypeError])
def test_a_store_that_lets_two_be_the_first_is_refused(
    tmp_path: Path, error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Careless(fsspec.filesystem("memory"), error)
    monkeypatch.setattr("clip_queue.bulk.output.layout.filesystem", lambda protocol: store)
    output = Output(f"memory://careless/{tmp_path.name}")
    with (
        OutputLease(output, "plan") as lease,
        pytest.raises(OutputError, match="does not tell which of several commands was"),
    ):
        lease.take()
    assert output.listed(".leases") == set()
