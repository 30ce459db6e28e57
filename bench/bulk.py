"""Bulk against its ceilings (decoding alone, the forward pass alone) and against clip-retrieval."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from bench import datasets
from bench.ceilings import Ceilings, ceilings
from bench.common import ROUNDS, SECONDS, VIT, Row, console, show
from clip_queue.bulk.run.embed import embed
from clip_queue.bulk.run.planner import BATCH_CPU
from clip_queue.bulk.run.workers import default_workers
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings, cores
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.worker.inference.clip_model import CHECKPOINTS

# The Python of clip-retrieval's environment, which `make .venv-retrieval/.done` makes.
RETRIEVAL = Path(os.environ.get("CLIP_QUEUE_RETRIEVAL_PYTHON", ".venv-retrieval/bin/python"))
RETRIEVAL_TIMEOUT = 600.0  # seconds
RETRIEVAL_MODEL = {"emoji-mini": f"local-dir:{CHECKPOINTS / 'emoji-mini'}", VIT: "ViT-B-32-quickgelu/random"}


@dataclass(frozen=True)
class Case:
    """A dataset and a model. ``rows``: the 2,000 images are repeated. ``peer``: clip-retrieval reads each once, too."""

    model: str
    form: str
    size: str
    rows: int
    peer: bool = False
    precision: str = "auto"

    @property
    def settings(self) -> Settings:
        return Settings().model_copy(update={"models": [self.model], "precision": self.precision})

    def url(self, rows: int) -> str:
        if self.form == "folder":
            return datasets.links(rows, self.size)
        return {"tars": datasets.tars, "parquet": datasets.parquet}[self.form](self.size, rows // datasets.COUNT)


CASES = (
    Case("emoji-mini", "folder", "640", 8000, peer=True),
    Case("emoji-mini", "tars", "640", 8000, peer=True),
    Case("emoji-mini", "parquet", "640", 8000),
    Case("emoji-mini", "folder", "256", 8000),
    Case("emoji-mini", "folder", "640", 4000, peer=True, precision="fp32"),  # as clip-retrieval has it on a CPU
    Case(VIT, "folder", "640", 2000, peer=True),
    Case(VIT, "folder", "256", 2000),
)


def main() -> None:
    if not RETRIEVAL.exists():
        console.print(f"[yellow]{RETRIEVAL} does not exist: without clip-retrieval (make .venv-retrieval/.done)[/]")
    for (model, _), cases in groupby(CASES, lambda case: (case.model, case.precision)):
        settings = (first := next(cases)).settings
        # As `embed` alone starts it; its workers idle while the other sides are measured.
        with (
            ceilings(model, settings) as alone,
            EmbeddedStack(settings, workers=default_workers(settings), apis=0) as stack,
        ):
            ours(stack, datasets.links(64), model, alone)  # to warm up
            for case in (first, *cases):
                measure(case, alone, stack)


def measure(case: Case, alone: Ceilings, stack: EmbeddedStack) -> None:
    files = sorted(datasets.folder(case.size).iterdir())[:256]
    plain, decoding, forward, rates, peers = [], [], [], [], []
    for _ in range(ROUNDS):
        plain.append(alone.plain_decoding(files, SECONDS / 2))
        decoding.append(alone.decoding(files, SECONDS / 2))
        forward.append(alone.forward(files, SECONDS))
        rates.append(ours(stack, case.url(case.rows), case.model, alone))
        if case.peer and RETRIEVAL.exists():
            peers.append(retrieval(case))
    both = [1 / (1 / d + 1 / f) for d, f in zip(decoding, forward, strict=True)]
    of_plain = [r / min(d, f) for r, d, f in zip(rates, plain, forward, strict=True)]
    of_least = [r / min(d, f) for r, d, f in zip(rates, decoding, forward, strict=True)]
    of_both = [r / b for r, b in zip(rates, both, strict=True)]
    rows = [
        Row("decoding alone, by Pillow and open_clip's transform", plain, "rows/s"),
        Row("decoding alone, as the worker does it", decoding, "rows/s"),
        Row("forward pass alone", forward, "rows/s"),
        Row("the last two, one after the other on the same cores", both, "rows/s"),
        Row("embed", rates, "rows/s"),
        Row("embed ÷ the lesser of open_clip's decoding and forward", of_plain, "", "≥ 0.95"),
        Row("embed ÷ the lesser of the worker's decoding and forward", of_least, "", "≥ 0.95"),
        Row("embed ÷ both on the same cores", of_both, "", "≥ 0.9"),
    ]
    if peers:
        steady = [peer["second_half_rows_per_s"] or peer["rows_per_s"] for peer in peers]
        rows += [
            Row(f"clip-retrieval ({peers[0]['precision']}), once it is under way", steady, "rows/s"),
            Row("embed ÷ clip-retrieval", [r / s for r, s in zip(rates, steady, strict=True)], "", "≥ 4"),
        ]
    name = f"{parse_model(case.model).name}, {alone.clip.precision}, {alone.clip.device}, {cores()} cores"
    show(f"{name}: {case.form} of {case.size} px JPEGs, {case.rows:,} rows", rows)


def ours(stack: EmbeddedStack, source: str, model: str, alone: Ceilings) -> float:
    """The rows a second of ``embed`` by the stack's workers, with the batch size of workers that it starts itself."""
    batch = None if alone.clip.device.type == "cuda" else BATCH_CPU
    with tempfile.TemporaryDirectory() as output:
        report = embed(
            source, output, model=model, redis_url=stack.redis_url, settings=stack.settings, batch_size=batch
        )
    assert report.status == 0, report
    return report.rate


def retrieval(case: Case) -> dict[str, float]:
    """The figures that a run of clip-retrieval on the same files prints."""
    with tempfile.TemporaryDirectory() as output:
        kind = "webdataset" if case.form == "tars" else "files"
        command = [
            str(RETRIEVAL),
            "bench/retrieval/run.py",
            case.url(min(case.rows, datasets.COUNT)),
            f"{output}/out",
            "--input-format",
            kind,
        ]
        options = ["--clip-model", RETRIEVAL_MODEL[case.model], "--num-prepro-workers", str(cores())]
        run = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=RETRIEVAL_TIMEOUT,
            check=True,
        )
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
