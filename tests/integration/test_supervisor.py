"""The supervisor with stand-in children: small Python programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from clip_queue.stack.guardian import Guardian
from clip_queue.stack.supervisor import Spec, Supervisor

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
POLITE = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True);"
    "time.sleep(60)"
)


def spec(name: str, code: str, **more: object) -> Spec:
    return Spec(name, [sys.executable, "-c", code], **more)  # type: ignore[arg-type]


def until(true: Callable[[], bool], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def sup(tmp_path: Path, said: list[str]) -> Iterator[Supervisor]:
    it = Supervisor(tmp_path, say=said.append, max_delay=0.5, log_limit=10_000)
    it.start()
    yield it
    it.hurry()
    it.stop()
    assert all(child.pid is None for child in it.children)


def test_what_dies_is_started_again_and_said(sup: Supervisor, said: list[str]) -> None:
    child = sup.add(spec("one", POLITE))
    until(lambda: "up" in child.tail())
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: child.pid not in (None, first))
    assert said == ["one ended (killed by SIGKILL); starting it again in 0.25 s"]


def test_restarts_slow_down_and_the_console_stays_short(sup: Supervisor, said: list[str]) -> None:
    child = sup.add(spec("bad", "raise SystemExit(3)"))
    until(lambda: child.deaths >= 6)
    assert "exit code 3" in said[0]
    assert "0.25 s" in said[0]
    assert "in 0.5 s" in said[1]
    assert "in 0.5 s" in said[2], "no longer than max_delay"
    assert len(said) == 4, "the fifth and sixth death in a row go unsaid"


def test_how_it_ended_is_known_with_its_last_words(sup: Supervisor, said: list[str]) -> None:
    child = sup.add(spec("bad", "print('the reason'); raise SystemExit(3)"))
    until(lambda: child.ends == 1)
    assert (child.ended, child.code, child.deaths) == ("exit code 3", 3, 1)
    assert child.tail() == "the reason"


def test_a_command_that_is_not_there_ends_like_any_other(sup: Supervisor) -> None:
    child = sup.add(Spec("none", ["no-such-command"]))
    until(lambda: child.ends > 0)
    assert child.ended == "exit code 1"
    assert child.tail().splitlines()[0] == "no-such-command: No such file or directory"


def test_children_stop_by_rank_each_within_its_grace(tmp_path: Path, said: list[str]) -> None:
    sup = Supervisor(tmp_path, say=said.append)
    sup.start()
    order = tmp_path / "order"
    note = (
        "import signal, sys, time\ndef end(*_):\n  time.sleep(0.2); open({path!r}, 'a').write({name!r}); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)"
    )
    for rank, name in enumerate("abc"):
        sup.add(spec(name, note.format(path=str(order), name=name), rank=rank))
    stubborn = sup.add(spec("stubborn", STUBBORN, rank=1, grace=0.5))
    until(lambda: all("up" in child.tail() for child in sup.children))
    begin = time.monotonic()
    sup.stop()
    assert time.monotonic() - begin < 5
    assert order.read_text() == "cba"
    assert stubborn.process is not None
    assert stubborn.process.returncode == -signal.SIGKILL
    assert said == ["stubborn did not stop within 0.5 s; killing it"]


def test_hurry_kills_at_once(tmp_path: Path) -> None:
    sup = Supervisor(tmp_path)
    sup.start()
    child = sup.add(spec("stubborn", STUBBORN, grace=60))
    until(lambda: "up" in child.tail())
    begin = time.monotonic()
    sup.hurry()
    sup.stop()
    assert time.monotonic() - begin < 3
    assert child.pid is None


def test_grandchildren_do_not_stay_behind(sup: Supervisor) -> None:
    code = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])\n"
        "print(p.pid, flush=True); p.wait()"
    )
    child = sup.add(spec("parent", code))
    until(lambda: "up" in child.tail())
    grandchild = psutil.Process(int(child.tail().splitlines()[0]))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_a_secret_reaches_the_child_by_environment(sup: Supervisor) -> None:
    child = sup.add(spec("one", "import os; print(os.environ['KEY'])", env={"KEY": "secret"}))
    until(lambda: "secret" in child.tail())
    assert "secret" not in " ".join(child.spec.command)


def test_a_log_is_moved_at_start_and_when_it_is_over_the_limit(sup: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    log.parent.mkdir()
    log.write_text("of the last time")
    code = "import time\nfor n in range(10**6): print(n, 'x' * 100, flush=True); time.sleep(0.001)"
    child = sup.add(spec("one", code))
    until(lambda: child.pid is not None)
    until(lambda: size(log.with_suffix(".log.1")) > 10_000)
    until(lambda: 0 < size(log) < 200_000)


def size(log: Path) -> int:
    """Bytes of a log; 0 in the moment in which it is moved."""
    return log.stat().st_size if log.is_file() else 0


ORPHANS = """
import sys, time; from pathlib import Path
from clip_queue.stack import supervisor
from clip_queue.stack.guardian import Guardian
from clip_queue.stack.supervisor import Spec, Supervisor
supervisor.DEATH_SIGNAL = {death_signal}
sup = Supervisor(Path({folder!r})); sup.start()
polite = sup.add(Spec('polite', [sys.executable, '-c', {polite!r}]))
stubborn = sup.add(Spec('stubborn', [sys.executable, '-c', {stubborn!r}], grace=40))
while not all('up' in child.tail() for child in sup.children): time.sleep(0.02)
print(polite.pid, stubborn.pid, sup._guardian.pid, flush=True); time.sleep(60)
"""


def orphans(folder: Path, *, death_signal: bool) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A supervisor in a process of its own: that process; its two children and its guardian."""
    code = ORPHANS.format(folder=str(folder), death_signal=death_signal, polite=POLITE, stubborn=STUBBORN)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = parent.stdout.readline().split()
    parent.stdout.close()
    return parent, [psutil.Process(int(pid)) for pid in pids]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("death_signal", [False, sys.platform == "linux"])
def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path, death_signal: bool) -> None:
    parent, processes = orphans(tmp_path, death_signal=death_signal)
    parent.kill()
    parent.wait(timeout=5)
    until(lambda: all(map(ended, processes)), 20)


def test_a_guardian_that_is_killed_is_replaced_and_knows_the_children(tmp_path: Path) -> None:
    parent, [polite, stubborn, guardian] = orphans(tmp_path, death_signal=False)
    guardian.kill()
    others = [polite.pid, stubborn.pid, guardian.pid]
    until(lambda: any(p.pid not in others for p in psutil.Process(parent.pid).children()))
    parent.kill()
    parent.wait(timeout=5)
    until(lambda: ended(polite) and ended(stubborn), 20)


def test_a_guardian_survives_the_signals_that_stop_all_processes_politely(sup: Supervisor) -> None:
    child = sup.add(spec("one", POLITE))
    until(lambda: "up" in child.tail())
    pid = sup._guardian.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    assert sup._guardian.pid == pid


def test_a_guardian_survives_them_from_its_first_moment_on() -> None:
    guardian = Guardian()
    try:
        for _ in range(3):
            guardian.ensure({})
            pid = guardian.pid
            assert pid is not None
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)  # Python has not even begun there
            ignored = sum(1 << (number - 1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
            status = Path(f"/proc/{pid}/status")
            until(lambda: guardian.pid != pid or _mask(status, "SigIgn") & ignored == ignored)  # noqa: B023
            assert guardian.pid == pid
            guardian.close()
            assert guardian.pid is None
            guardian._due = 0.0
    finally:
        guardian.close()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "and this thread takes signals as before"


def _mask(status: Path, name: str) -> int:
    return int(re.findall(rf"{name}:\s*(\w+)", status.read_text())[0], 16)
