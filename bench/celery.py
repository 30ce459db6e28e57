"""What events and remote control cost (the setting ``celery_tools``): on against off, in short turns."""

from __future__ import annotations

from bench.common import Row, served, show
from bench.load import Load, run
from bench.versus import CASES, WARM, Case

ROUNDS = 3
TURNS = 8  # in a round; a side's figure is that of all its turns together
SECONDS = 1.5  # of a turn: what else the machine does meets both


def main() -> None:
    with served("emoji-mini") as off, served("emoji-mini", celery_tools=True) as on:
        for name in ("texts", "latency"):
            compare(name, CASES[name], off.api_url, on.api_url)


def compare(name: str, case: Case, off: str, on: str) -> None:
    bodies = case.bodies()

    def load(url: str, seconds: float) -> Load:
        measured = run(url, case.path, bodies, at_once=case.at_once, seconds=seconds)
        assert not measured.failures
        return measured

    figures: dict[str, list[float]] = {off: [], on: []}
    for url in figures:
        load(url, WARM)
    for number in range(ROUNDS):
        loads: dict[str, list[Load]] = {off: [], on: []}
        for turn in range(TURNS):
            for url in (off, on) if (number + turn) % 2 else (on, off):
                loads[url].append(load(url, SECONDS))
        for url, measured in loads.items():
            figures[url].append(case.figure(measured))
    ratios = [o / w if case.more_is_better else w / o for w, o in zip(figures[off], figures[on], strict=True)]
    show(
        f"{name}, emoji-mini, {case.at_once} at once",
        [
            Row("off", figures[off], case.unit),
            Row("on", figures[on], case.unit),
            Row("on is as good as off", ratios, ""),
        ],
    )


if __name__ == "__main__":
    main()
