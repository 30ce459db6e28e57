"""One API process and two on one port: texts, 64 and 256 at once, and images, each by turns."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench.common import ROUNDS, Row, image_bodies, served, show, text_bodies
from bench.load import Load, run

MODEL = "emoji-mini"
NUMBERS = (1, 2)
LOADS = (("text", 64), ("text", 256), ("image", 32))
SECONDS = 4  # of a turn


def main() -> None:
    bodies = {"text": text_bodies(), "image": image_bodies((256, 256))}
    found: dict[tuple[str, int, int], list[Load]] = {}
    with ExitStack() as services:
        urls = {number: services.enter_context(served(MODEL, apis=number)).api_url for number in NUMBERS}
        for url in urls.values():
            for what, at_once in LOADS:
                run(url, f"/clip/embed_{what}", bodies[what], at_once=at_once, seconds=2)
        for turn in range(ROUNDS):
            for number in NUMBERS[:: 1 if turn % 2 else -1]:
                for what, at_once in LOADS:
                    time.sleep(1)  # what was before has ended
                    load = run(urls[number], f"/clip/embed_{what}", bodies[what], at_once=at_once, seconds=SECONDS)
                    assert not load.failures
                    found.setdefault((what, at_once, number), []).append(load)
    rows = []
    for what, at_once in LOADS:
        one, two = (found[what, at_once, number] for number in NUMBERS)
        name = f"{what}s, {at_once} at once"
        rows += [Row(f"{name}: {n}", [load.rate for load in loads], "/s") for n, loads in ((1, one), (2, two))]
        rows.append(Row(f"{name}: 2 ÷ 1", [b.rate / a.rate for a, b in zip(one, two, strict=True)], ""))
        rows.append(
            Row(
                f"{name}: p99, 2 ÷ 1",
                [b.percentile(0.99) / a.percentile(0.99) for a, b in zip(one, two, strict=True)],
                "",
            )
        )
    show(f"API processes, {MODEL}, one text or image a request, client on the same cores", rows)


if __name__ == "__main__":
    main()
