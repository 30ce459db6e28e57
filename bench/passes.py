"""The CPU time of forward passes by model, precision and batch size: ``python -m bench passes [PATH]``.

With the path of another checkout that has its own ``.venv``, beside what its code takes, in turns: one process for
each, that computes when it is told to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import orjson
import torch

from bench.common import ROUNDS, VIT, Row, bare, show
from clip_queue.shared.settings import Settings

CASES = (("emoji-mini", "bf16"), ("emoji-mini", "fp32"), (VIT, "bf16"), (VIT, "fp32"))
SIZES = (1, 8, 32, 64)
SECONDS = 0.6  # CPU time of a turn
THREADS = 1


def main(arguments: list[str] | None = None) -> None:
    others = [Path(path).absolute() for path in arguments or ()]
    for model, precision in CASES:
        with ExitStack() as stack:
            sides = {str(path or "here"): stack.enter_context(side(path, model, precision)) for path in (None, *others)}
            compare(f"{model.partition('=')[0]}, {precision}", sides)


def compare(title: str, sides: dict[str, Callable[[str, int], float]]) -> None:
    rows = []
    for kind in ("images", "texts"):
        for size in SIZES:
            taken: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(ROUNDS):
                for name in sorted(sides, reverse=bool(turn % 2)):
                    taken[name].append(1000 * sides[name](kind, size) / size)
            rows += [Row(f"{kind}, {size} at once, {name}", values, "ms CPU each") for name, values in taken.items()]
            here, *old = taken.values()
            for values in old:
                ratios = [before / now for before, now in zip(values, here, strict=True)]
                rows.append(Row(f"{kind}, {size} at once, as quick as that", ratios, "times"))
    show(f"forward passes, {title}, {THREADS} thread", rows, digits=3)


@contextmanager
def side(checkout: Path | None, model: str, precision: str) -> Iterator[Callable[[str, int], float]]:
    """What measures the CPU time of a pass, seconds, by the code of a checkout; None: this one's."""
    python = str(checkout / ".venv/bin/python") if checkout else sys.executable
    here = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": f"{checkout}:{here}" if checkout else here}
    command = [python, __file__, model, precision]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def measure(kind: str, size: int) -> float:
            process.stdin.write(orjson.dumps([kind, size]) + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return float(process.stdout.readline())  # type: ignore[union-attr]

        yield measure
        process.stdin.close()


def serve(model: str, precision: str) -> None:
    torch.set_num_threads(THREADS)
    clip = bare(model, Settings(precision=precision))
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 255, (*clip.image_size, 3), dtype=np.uint8) for _ in range(max(SIZES))]
    tokens = [clip.tokenizer(f"a photo of thing {number} on a table") for number in range(max(SIZES))]
    for line in sys.stdin:
        kind, size = orjson.loads(line)
        embed, payload = (clip.embed_images, pixels) if kind == "images" else (clip.embed_texts, tokens)
        for _ in range(2):
            embed(payload[:size]).result()
        passes, began = 0, time.process_time()
        while (taken := time.process_time() - began) < SECONDS or passes < 2:
            embed(payload[:size]).result()
            passes += 1
        print(taken / passes, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
