"""Requests of one text each, 64 at once, against the forward pass alone."""

from __future__ import annotations

import itertools

import orjson
import psutil

from bench.common import ROUNDS, SECONDS, Row, bare, served, show, text_bodies
from bench.load import rate_of, run

MODEL = "emoji-mini"
AT_ONCE = 64


def main() -> None:
    clip = bare(MODEL)
    tokens = [clip.tokenizer(orjson.loads(body)["text"]) for body in itertools.islice(text_bodies(), 32)]
    fresh, known = text_bodies(), itertools.cycle([orjson.dumps({"text": f"label {i}"}) for i in range(100)])
    rates, cached, bares, shares = [], [], [], dict[str, list[float]]()
    with served(MODEL) as stack:
        run(stack.api_url, "/clip/embed_text", fresh, at_once=AT_ONCE, seconds=2)
        for _ in range(ROUNDS):
            processes = {
                name: psutil.Process(pid) for name, pid in {**stack.pids, "client": psutil.Process().pid}.items()
            }
            before = {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}
            load = run(stack.api_url, "/clip/embed_text", fresh, at_once=AT_ONCE, seconds=SECONDS)
            for name, process in processes.items():
                spent = sum(process.cpu_times()[:2]) - before[name]
                shares.setdefault(name, []).append(1000 * spent / len(load.latencies))
            assert not load.failures
            rates.append(load.rate)
            cached.append(run(stack.api_url, "/clip/embed_text", known, at_once=AT_ONCE, seconds=SECONDS / 2).rate)
            bares.append(rate_of(lambda: len(clip.embed_texts(tokens).result()), 2))
    show(
        f"one text a request, {MODEL}, {clip.precision}, {AT_ONCE} at once, client on the same cores",
        [
            Row("served, texts never seen", rates, "requests/s", "≥ 2000"),
            Row("served, 100 labels again and again", cached, "requests/s"),
            Row("bare forward, batch 32", bares, "texts/s"),
            *(Row(f"CPU of {name}", values, "ms/request") for name, values in shares.items()),
        ],
    )


if __name__ == "__main__":
    main()
