"""Fixtures that every test folder may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin

from tests.harness import SERVER, Api, Stack, stack

# Before torch is imported: here, and in the hundreds of processes that tests start. On two cores that several of them
# share, threads wait for each other; to measure how many are worth it takes a worker 4 of the 9 s of CPU of its start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", metavar="PROGRAM", help="start this in Valkey's place, such as redis-server")


def pytest_configure(config: pytest.Config) -> None:
    if program := config.getoption("--server"):
        os.environ[SERVER] = program


_eval = ScriptingCommandsMixin.eval


def _eval_after_flags(self: ScriptingCommandsMixin, script: bytes, *args: Any) -> Any:
    """The server reads a script's first line of flags (``#!lua …``) and passes it over; fakeredis knows none."""
    return _eval(self, script.replace(b"#!", b"--", 1) if script.startswith(b"#!") else script, *args)


ScriptingCommandsMixin.eval = _eval_after_flags  # type: ignore[method-assign,assignment]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Api]]:
    """One real stack for all tests that only ask: Valkey, one worker with emoji-mini, one API without keys."""
    with stack(tmp_path_factory.mktemp("stack")) as it:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("OMP_NUM_THREADS")  # this one worker as users start it
            worker = it.worker()
        api = it.api()
        it.ready(worker, api, timeout=240)  # on a loaded machine
        yield it, api


@pytest.fixture
def http(served: tuple[Stack, Api]) -> Iterator[httpx.Client]:
    """A client of that stack."""
    with served[1].client() as client:
        yield client


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A Valkey of the test's own, for tests that break things."""
    with stack(tmp_path) as it:
        yield it
