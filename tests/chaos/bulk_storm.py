"""A seeded storm over bulk runs: workers, commands and Valkey are killed; the outputs are as if nothing had been.

Two of the commands embed, one updates an output that is finished, and one tries rows again that failed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from clip_queue.shared.errors import Unavailable
from tests import datasets
from tests.bulk_command import Embed
from tests.chaos.led_run import LedRun
from tests.faults import Faults
from tests.harness import Service, Stack, stack
from tests.images import noise_image
from tests.outputs import checksums, strays, table

KINDS = 6  # of misfortune
PASS = 1.0  # seconds that each forward pass takes longer while it rages
START = 240.0  # seconds that the stack may take to start, and a run to end when the storm is over
ATTEMPTS = 50  # a storm takes a shard's workers down more often than any one shard does
ROWS = 120  # good ones, in each source
BAD = 3  # the status of a run some of whose rows failed
OPTIONS = ("--shard-size", 10, "--batch-size", 4)
UPDATE, RETRY = "--update", "--retry-failed"
LED: dict[str, object] = {"shard_size": 10, "batch_size": 4}  # the same of the run that workers lead


@dataclass
class BulkReport:
    rounds: int = 0
    shards: int = 0
    wrong: list[str] = field(default_factory=list)  # what differs from a run that nothing happened to
    misfortunes: Counter[str] = field(default_factory=Counter)
    restarts: int = 0  # of commands
    leaders: int = 0  # that were killed
    again: int = 0  # items that went through the model more than once: what the storm cost
    needed: int = 0  # items of a round that nothing happens to

    def table(self) -> str:
        rows: list[tuple[str, object]] = [
            ("rounds", self.rounds),
            ("shards", self.shards),
            ("wrong", len(self.wrong)),
            ("commands given again", self.restarts),
            ("leaders killed", self.leaders),
            ("rows computed again", self.again),
            *((what, n) for what, n in sorted(self.misfortunes.items())),
        ]
        return "\n".join([*(f"{name:<42}{value:>8}" for name, value in rows), *self.wrong[:10]])


def bulk_storm(
    folder: Path, *, seed: int, seconds: float, pause: tuple[float, float] = (0.5, 2.5), round_seconds: float = 60.0
) -> BulkReport:
    """Let it rage for ``seconds``, in rounds: each embeds a folder and tars anew, and revises two outputs, in four
    commands at once.

    ``pause``: seconds between misfortunes.
    """
    rng, report = random.Random(seed), BulkReport()
    sources = {
        "folder": Task(datasets.folder(folder / "folder", ROWS)),
        "tars": Task(datasets.tars(folder / "tars", ROWS)),
    }
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # bytes are the same for the same number of threads
    settings = {"lease": 2, "drain_timeout": 3, "max_attempts": ATTEMPTS, "test_faults": folder / "faults"}
    with stack(folder, **settings) as it:
        # Every write is on disk before it is answered, so that even kill -9 may not lose one.
        it.valkey.client().config_set("appendfsync", "always")
        it.valkey.command += ["--appendfsync", "always"]
        faults = Faults(folder / "faults")
        workers = [it.worker("tests.faulty") for _ in range(2)]
        it.ready(*workers, timeout=START)
        try:
            sources |= to_revise(it, folder)
            passed = len(faults.passes())
            whole = undisturbed(it, sources, folder / "whole")
            report.needed = sum(len(p.items) for p in faults.passes()[passed:])
            end = time.monotonic() + seconds
            while time.monotonic() < end or not report.rounds:
                until = min(end, time.monotonic() + round_seconds)
                ReconcilePass(it, workers, faults, sources, folder / f"round-{report.rounds}", rng, report).run(
                    until, pause, whole
                )
        finally:
            faults.clear()
    return report


@dataclass(frozen=True)
class Task:
    """A source to embed; or, with a ``flag``, the finished output ``base`` of it to revise."""

    source: datasets.Dataset
    flag: str = ""
    base: Path | None = None


def commands(it: Stack, sources: dict[str, Task], folder: Path) -> dict[str, Embed]:
    folder.mkdir()
    made = {}
    for name, task in sources.items():
        if task.base:
            shutil.copytree(task.base, folder / name / "out")
        options = (*OPTIONS, task.flag) if task.flag else OPTIONS
        made[name] = Embed(folder, task.source.url, folder / name / "out", *options, name=f"embed-{name}", env=it.env())
    return made


def to_revise(it: Stack, folder: Path) -> dict[str, Task]:
    """Two outputs that are finished: the source of one has changed since, and images that one lacked are there now."""
    growing, names = folder / "growing", folder / "names"
    grown = datasets.folder(growing, ROWS)
    images = datasets.folder(names / "images", ROWS, captions=False)
    rows = [{"image": f"images/{name}", "text": f"a text {n}"} for n, (name, _, _) in enumerate(images.good)]
    (names / "in.jsonl").write_bytes(b"\n".join([*map(orjson.dumps, rows), b"{broken"]))
    named = datasets.Dataset(str(names / "in.jsonl"), [])
    away = [names / "images" / name for name, _, _ in images.good[::3]]
    for path in away:
        path.rename(path.with_suffix(".away"))
    runs = commands(it, {UPDATE: Task(grown), RETRY: Task(named)}, folder / "base")
    for run in runs.values():
        run.start()
    for run in runs.values():
        if run.ended() != BAD:
            raise AssertionError(run.said)
    for path in away:
        path.with_suffix(".away").rename(path)
    time.sleep(0.05)  # the times of files are a little behind the clock
    for n, (name, _, _) in enumerate(grown.good):
        if n % 20 == 3:
            (growing / name).unlink()
        elif n % 15 == 4:
            (growing / name).write_bytes(noise_image(n + 1, format="JPEG"))
    for n in range(ROWS // 2):
        (growing / f"n{n}.jpg").write_bytes(noise_image(1000 + n, format="JPEG"))
        (growing / f"n{n}.txt").write_text(f"a caption that is new {n}")
    return {
        name[2:]: Task(task, name, folder / "base" / name / "out") for name, task in ((UPDATE, grown), (RETRY, named))
    }


def undisturbed(it: Stack, sources: dict[str, Task], folder: Path) -> dict[str, dict[str, str]]:
    """Each source's checksums when nothing happens."""
    runs = commands(it, sources, folder)
    for command in runs.values():
        command.start()
    statuses = {name: command.ended() for name, command in runs.items()}
    if set(statuses.values()) != {BAD}:
        raise AssertionError("\n".join(command.said for command in runs.values()))
    return {name: checksums(command.output) for name, command in runs.items()}


class ReconcilePass:
    """Commands under way in a storm, and the supervisor that starts again what was killed."""

    def __init__(
        self,
        it: Stack,
        workers: list[Service],
        faults: Faults,
        sources: dict[str, Task],
        folder: Path,
        rng: random.Random,
        report: BulkReport,
    ) -> None:
        self._stack, self._workers, self._faults, self._sources = it, workers, faults, sources
        self._rng, self._report = rng, report
        self._commands = commands(it, sources, folder)
        self._led = LedRun(it, sources["folder"].source.url, folder / "led" / "out", LED)
        self._statuses: dict[str, int] = {}
        self._killed: set[str] = set()  # commands whose end was ours
        self._valkey_due = 0.0
        self._done: Counter[str] = Counter()
        self._acts: list[tuple[str, Callable[[], bool]]] = []

    def run(self, until: float, pause: tuple[float, float], whole: dict[str, dict[str, str]]) -> None:
        self._faults.delay(PASS)
        passed = len(self._faults.passes())
        for command in self._commands.values():
            command.start()
        led, due, give_up = False, 0.0, until + START
        while len(self._statuses) < len(self._commands) or not led or not self._led.over:
            self._tend()
            now = time.monotonic()
            if now > until and len(self._done) == KINDS:
                self._faults.clear()  # calm
            elif now > due and all(name in self._statuses or self._begun(name) for name in self._commands):
                # Before that a command waits a minute for a worker, and both may be gone for longer.
                if not led:
                    self._led.start()  # not earlier: it would be over before anything happens
                    led = True
                due = now + self._rng.uniform(*pause) if self._blow() else due
            if now > give_up:
                self._report.wrong += [f"not ended: {name}\n{c.said}" for name, c in self._commands.items() if c.alive]
                break
            time.sleep(0.05)
        self._calm()
        self._account(whole, passed)

    # The supervisor

    def _tend(self) -> None:
        if not self._stack.valkey.alive and time.monotonic() > self._valkey_due:
            self._stack.valkey.start()
        for worker in self._workers:
            if not worker.alive:
                worker.start()
        for name, command in self._commands.items():
            if command.alive or name in self._statuses:
                continue
            if name in self._killed:
                self._killed.discard(name)
                self._report.restarts += 1
                command.start()
            else:
                self._statuses[name] = command.ended()

    def _calm(self) -> None:
        self._faults.clear()
        for command in self._commands.values():
            command.kill()
        self._valkey_due = 0.0
        self._tend()
        self._stack.ready(*self._workers, timeout=START)

    # Misfortunes, each at least once in a while

    def _blow(self) -> bool:
        """Do the next one; False if it must wait."""
        if not self._acts:
            self._acts = [
                ("kill a worker", self._worker(signal.SIGKILL)),
                ("kill a worker", self._worker(signal.SIGKILL)),
                ("terminate a worker", self._worker(signal.SIGTERM)),
                ("kill a command", self._command(signal.SIGKILL)),
                ("stop a command", self._command(signal.SIGINT)),
                ("kill Valkey", self._kill_valkey),
            ]
            self._rng.shuffle(self._acts)
            self._acts.append(("kill a leader", self._kill_leader))  # the first, while the run is under way
        what, act = self._acts[-1]
        if not act():
            return False
        self._acts.pop()
        self._done[what] += 1
        self._report.misfortunes[what] += 1
        return True

    def _worker(self, number: signal.Signals) -> Callable[[], bool]:
        def act() -> bool:
            alive = self._serving()
            ready = [worker for worker in self._workers if worker.pid in alive]
            if not ready:
                return False  # both are only just starting: no blow could hit a shard
            self._rng.choice(ready).signal(number)
            return True

        return act

    def _command(self, number: signal.Signals) -> Callable[[], bool]:
        def act() -> bool:
            under_way = sorted(
                name for name, c in self._commands.items() if c.alive and self._begun(name) and not c.stopping
            )
            if not under_way:
                return False
            name = self._rng.choice(under_way)
            self._killed.add(name)
            self._commands[name].signal(number)
            return True

        return act

    def _begun(self, name: str) -> bool:
        """Whether some of the shards that a command does are complete."""
        command = self._commands[name]
        return bool(command.revised() if self._sources[name].flag else command.complete())

    def _kill_valkey(self) -> bool:
        if not self._stack.valkey.alive:
            return False
        self._valkey_due = time.monotonic() + self._rng.uniform(0, 3)
        self._stack.valkey.kill()
        return True

    def _kill_leader(self) -> bool:
        """Kill the worker that leads the run which nobody waits for."""
        worker = self._led.leader(self._workers)
        if worker is None:
            return self._led.over
        worker.signal(signal.SIGKILL)
        self._report.leaders += 1
        return True

    def _serving(self) -> set[int]:
        try:
            return self._stack.workers()
        except Unavailable:
            return set()

    # The account

    def _account(self, whole: dict[str, dict[str, str]], passed: int) -> None:
        report = self._report
        report.rounds += 1
        for name, command in self._commands.items():
            if self._statuses.get(name) != BAD:
                report.wrong.append(f"{name} ended with {self._statuses.get(name)}:\n{command.said}")
                continue
            report.shards += command.complete()
            report.wrong += [
                f"{name}: {what}" for what in differences(command.output, self._sources[name], whole[name])
            ]
        report.wrong += self._led.close()
        report.wrong += [
            f"led: {what}" for what in differences(self._led.output, self._sources["folder"], whole["folder"])
        ]
        texts = Counter(text for p in self._faults.passes()[passed:] for text in p.items)
        report.again += sum(texts.values()) - report.needed - len(self._sources["folder"].source.good)


def differences(output: Path, task: Task, whole: dict[str, str]) -> list[str]:
    """How an output is not that of a run that nothing happened to."""
    found = checksums(output)
    wrong = [f"{name} differs" for name in sorted(whole.keys() | found.keys()) if whole.get(name) != found.get(name)]
    wrong += [f"{name} is left" for name in strays(output)]
    if task.flag:
        return wrong
    source = task.source
    if [row["image_path"] for row in table(output)] != [name for name, _, _ in source.good]:
        wrong.append("the metadata are not the good rows, each once")
    bad = [row["image_path"].rpartition("/")[2] for row in table(output, "errors")]
    if bad != source.bad:
        wrong.append(f"the errors are not the bad rows, each once: {bad}")
    return wrong
