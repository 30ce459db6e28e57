"""A pytest plugin for the continuous integration: with ``-p tests.repeat_failed`` some failed tests are repeated once.

Tests in ``tests/integration`` and ``tests/chaos`` run real processes on a machine that others use too. One of them that
fails, in its setup, its body or its teardown or by a crash of its process, is repeated once after all others have
ended, alone, in a pytest of its own. If it passes then it counts as passed, and its name is printed on a line that
begins with ``FLAKY``; if not, it has failed. Unit tests and files that cannot be collected are never repeated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

import pytest

FOLDERS = ("tests/integration/", "tests/chaos/")
TOGETHER = float(os.environ.get("REPEAT_FAILED_SECONDS", "300"))  # after them no test is repeated any more
ALONE = 600.0  # seconds, the longest that one repetition may take


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # in the process that reports, not in xdist's workers
        config.pluginmanager.register(RepeatFailed(config), "repeat-failed")


class RepeatFailed:
    """The failed tests of a session, and what came of their repetition."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._flaky: dict[str, str] = {}  # by node id, how it failed the first time
        self._notes: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """After xdist's workers and their fixtures have gone, before the summary is written."""
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if exitstatus != pytest.ExitCode.TESTS_FAILED or not isinstance(reporter, pytest.TerminalReporter):
            return  # all passed, or the run was broken off
        until = time.monotonic() + TOGETHER
        for nodeid in failed_tests(reporter.stats):
            if time.monotonic() > until:
                self._notes.append(f"not repeated, since {TOGETHER:g} s went into repeating others: {nodeid}")
                continue
            reporter.write_line(f"repeating alone: {nodeid}")
            if output := self._fails_again(nodeid):
                self._notes.append(f"failed again, alone: {nodeid}\n{output}")
            else:
                failures = take_back(reporter.stats, nodeid)
                self._flaky[nodeid] = "\n".join(failures)
                session.testsfailed -= len(failures)
        reporter._set_main_color()  # of the last line, which also names what it knows to be there
        if not session.testsfailed and not session.shouldfail and not session.shouldstop:
            session.exitstatus = pytest.ExitCode.OK

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, Any, Any]:
        """The names last, where they are seen; how they failed first, before the failures that stay."""
        for nodeid, text in self._flaky.items():
            terminalreporter.section(f"{nodeid}, the first time")
            terminalreporter.write_line(text)
        result = yield
        for note in self._notes:
            terminalreporter.write_line(note)
        for nodeid in self._flaky:
            terminalreporter.write_line(f"FLAKY {nodeid}", yellow=True)
        return result

    def _fails_again(self, nodeid: str) -> str:
        """The output of a repetition that failed, or nothing."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", nodeid]
        env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        try:
            done = subprocess.run(
                command,
                cwd=self._config.rootpath,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ALONE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not within {ALONE:g} s"
        last = done.stdout.rstrip().rpartition("\n")[2]
        if done.returncode == pytest.ExitCode.OK and " passed" in f" {last}":
            return ""
        return done.stdout + done.stderr or f"exit status {done.returncode}"


def failed_tests(stats: dict[str, list[Any]]) -> list[str]:
    """The tests to repeat, by node id, in the order in which they failed."""
    reports = [*stats.get("failed", []), *stats.get("error", [])]
    found = [report.nodeid for report in reports if isinstance(report, pytest.TestReport)]
    return [nodeid for nodeid in dict.fromkeys(found) if nodeid.startswith(FOLDERS)]


def take_back(stats: dict[str, list[Any]], nodeid: str) -> list[str]:
    """Count a test as passed; returns its failures."""
    texts: list[str] = []
    for kind in ("failed", "error"):
        mine = [report for report in stats.get(kind, []) if report.nodeid == nodeid]
        texts += [report.longreprtext for report in mine]
        stats[kind] = [report for report in stats.get(kind, []) if report.nodeid != nodeid]
        if not stats[kind]:
            del stats[kind]
    passed = stats.setdefault("passed", [])
    if not any(report.nodeid == nodeid for report in passed):
        passed.append(pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "passed", None, "call"))
    return texts
