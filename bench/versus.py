"""This checkout against another, such as the last release: ``python -m bench versus PATH [texts images latency]``.

Both serve at once, each by its own ``clip-queue up``; the load, always that of this checkout, goes to one and then to
the other, in turns, so that what else the machine does meets both. The one that is not asked is idle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.common import VIT, Row, console, image_bodies, show, text_bodies
from bench.load import Load, run
from clip_queue.stack.machine import free_port

ROUNDS = 3
TURNS = 4  # in a round; a side's figure is that of all its turns together
WARM = 3.0  # seconds of load before the first round
START = 300.0  # seconds that a service may take to be ready
ALLOWED = 0.03  # what the limits may cost


@dataclass(frozen=True)
class Case:
    """A load. ``seconds``: of one turn. ``figure``: what is compared; ``cost`` is new ÷ old, or its inverse."""

    path: str
    bodies: Callable[[], Iterator[bytes]]
    at_once: int
    figure: Callable[[list[Load]], float]
    unit: str
    more_is_better: bool
    seconds: float = 4.0
    model: str = "emoji-mini"


def rate(loads: list[Load]) -> float:
    return sum(len(load.latencies) for load in loads) / sum(load.seconds for load in loads)


def p50(loads: list[Load]) -> float:
    return 1000 * statistics.median(latency for load in loads for latency in load.latencies)


CASES = {
    "texts": Case("/clip/embed_text", text_bodies, 64, rate, "requests/s", True),
    "images": Case("/clip/embed_image", lambda: image_bodies((640, 480)), 32, rate, "images/s", True, model=VIT),
    "latency": Case("/clip/embed_image", lambda: image_bodies((256, 256)), 1, p50, "ms", False),
}


def main(arguments: list[str]) -> None:
    if not arguments or not Path(arguments[0]).is_dir() or (unknown := set(arguments[1:]) - CASES.keys()):
        sys.exit(f"python -m bench versus PATH [{' '.join(CASES)}]" + (f": no {unknown}" if len(arguments) > 1 else ""))
    old = Path(arguments[0]).absolute()
    for name in arguments[1:] or CASES:
        compare(name, CASES[name], old)


def compare(name: str, case: Case, old: Path) -> None:
    with served(case, old) as old_url, served(case, None) as new_url:
        bodies = case.bodies()

        def load(url: str, seconds: float) -> Load:
            measured = run(url, case.path, bodies, at_once=case.at_once, seconds=seconds)
            if measured.failures:
                raise AssertionError(f"{measured.failures} requests of {name} failed")
            return measured

        for url in (old_url, new_url):
            load(url, WARM)
        olds, news = [], []
        for number in range(ROUNDS):
            loads: dict[str, list[Load]] = {old_url: [], new_url: []}
            for turn in range(TURNS):
                # Who goes first changes, so that a drift of the machine's speed favours nobody.
                for url in (old_url, new_url) if (number + turn) % 2 else (new_url, old_url):
                    loads[url].append(load(url, case.seconds))
            olds.append(case.figure(loads[old_url]))
            news.append(case.figure(loads[new_url]))
    ratios = [new / old if case.more_is_better else old / new for old, new in zip(olds, news, strict=True)]
    show(
        f"{name}: new against old ({case.model.partition('=')[0]}, {case.at_once} at once)",
        [
            Row("old", olds, case.unit),
            Row("new", news, case.unit),
            Row("as good as the old", ratios, "", f"≥ {1 - ALLOWED:g}"),
        ],
    )
    middle = statistics.median(ratios)
    console.print(f"{name}: {100 * (middle - 1):+.1f} % ({'within' if middle >= 1 - ALLOWED else 'NOT within'} 3 %)")


@contextmanager
def served(case: Case, checkout: Path | None, more: dict[str, str] | None = None) -> Iterator[str]:
    """A service of a checkout, by its own ``.venv``; None: of this one. ``more``: variables for it. Yields its URL."""
    command = [sys.executable, "-m", "clip_queue.cli"]
    env = {**os.environ, "CLIP_QUEUE_MODELS": case.model, "CLIP_QUEUE_MAX_QUEUED_ITEMS": "100000", **(more or {})}
    if checkout:
        command = [str(checkout / ".venv/bin/clip-queue")]
        env.pop("PYTHONPATH", None)  # or it would run this code
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="clip-queue-bench-") as folder, (Path(folder) / "out").open("wb") as out:
        options = ["up", "--port", str(port), "--workers", "1", "--data-dir", f"{folder}/data"]
        process = subprocess.Popen([*command, *options], cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + START
            while not ready(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command[0]} up: {(Path(folder) / 'out').read_text()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readiness", timeout=10, trust_env=False).status_code == 200
    return False
