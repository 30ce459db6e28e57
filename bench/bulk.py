"""Bulk against its ceilings (decoding alone, the forward pass alone) and against clip-retrieval, round by round."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import pictures
from bench.ceilings import Ceilings, ceilings
from bench.common import ROUNDS, SECONDS, VIT, Row, console, show
from bulk.distributor import default_workers
from bulk.embed import embed
from shared.models import parse_model
from shared.settings import Settings, cores
from stack.embedded import EmbeddedStack
from worker.clip import CHECKPOINTS

# Its environment: `make .venv-retrieval/.done`.
RETRIEVAL = Path(os.environ.get("CLIP_QUEUE_RETRIEVAL_PYTHON", ".venv-retrieval/bin/python"))
RETRIEVAL_TIMEOUT = 600.0  # seconds
RETRIEVAL_MODEL = {"emoji-mini": f"local-dir:{CHECKPOINTS / 'emoji-mini'}", VIT: "ViT-B-32-quickgelu/random"}


@dataclass(frozen=True)
class Case:
    """``rows``: of a folder, fewer than all; ``peer``: clip-retrieval reads it, too."""

    model: str
    form: str
    size: str
    rows: int = pictures.COUNT
    peer: bool = False

    @property
    def url(self) -> str:
        if self.form == "folder" and self.rows < pictures.COUNT:
            return str(pictures.links(self.rows, self.size))
        made = {"folder": pictures.folder, "tars": pictures.tars, "parquet": pictures.parquet}[self.form](self.size)
        return str(made)


CASES = (
    Case("emoji-mini", "folder", "256"),
    Case("emoji-mini", "folder", "640", peer=True),
    Case("emoji-mini", "tars", "640", peer=True),
    Case("emoji-mini", "parquet", "640"),
    Case(VIT, "folder", "640", rows=512, peer=True),
)


def main() -> None:
    if not RETRIEVAL.exists():
        console.print(f"[yellow]{RETRIEVAL} is not there: without clip-retrieval (make .venv-retrieval/.done)[/]")
    for model in dict.fromkeys(case.model for case in CASES):
        settings = Settings().model_copy(update={"models": [model]})
        # As `embed` alone starts it; its workers idle while the other sides are measured.
        with (
            ceilings(model) as alone,
            EmbeddedStack(settings, workers=default_workers(settings), api=False) as stack,
        ):
            ours(stack, str(pictures.links(64)), model)  # warm
            for case in (c for c in CASES if c.model == model):
                measure(case, alone, stack)


def measure(case: Case, alone: Ceilings, stack: EmbeddedStack) -> None:
    files = sorted(pictures.folder(case.size).iterdir())[:256]
    decoding, forward, both, rates, peers = [], [], [], [], []
    for _ in range(ROUNDS):
        decoding.append(alone.decoding(files, SECONDS / 2))
        forward.append(alone.forward(files, SECONDS))
        both.append(1 / (1 / decoding[-1] + 1 / forward[-1]))
        rates.append(ours(stack, case.url, case.model))
        if case.peer and RETRIEVAL.exists():
            peers.append(retrieval(case))
    of_least = [r / min(d, f) for r, d, f in zip(rates, decoding, forward, strict=True)]
    of_both = [r / b for r, b in zip(rates, both, strict=True)]
    rows = [
        Row("decoding alone", decoding, "rows/s"),
        Row("forward pass alone", forward, "rows/s"),
        Row("both, one after the other on the same cores", both, "rows/s"),
        Row("embed", rates, "rows/s"),
        Row("embed ÷ the lesser of the two", of_least, "", "≥ 0.95"),
        Row("embed ÷ both on the same cores", of_both, ""),
    ]
    if peers:
        steady = [peer["second_half_rows_per_s"] or peer["rows_per_s"] for peer in peers]
        rows += [
            Row(f"clip-retrieval ({peers[0]['precision']}), once it is under way", steady, "rows/s"),
            Row("embed ÷ clip-retrieval", [r / s for r, s in zip(rates, steady, strict=True)], "", "≥ 2"),
        ]
    name = f"{parse_model(case.model).name}, {alone.clip.precision}, {alone.clip.device}, {cores()} cores"
    show(f"{name}: {case.form} of {case.size} px JPEGs", rows)


def ours(stack: EmbeddedStack, source: str, model: str) -> float:
    """Rows a second of ``embed`` by the stack's worker."""
    with tempfile.TemporaryDirectory() as output:
        report = embed(source, output, model=model, redis_url=stack.redis_url, settings=stack.settings, shard_size=128)
    assert report.status == 0, report
    return report.rate


def retrieval(case: Case) -> dict[str, float]:
    """What clip-retrieval's run on the same files says of itself."""
    with tempfile.TemporaryDirectory() as output:
        kind = "webdataset" if case.form == "tars" else "files"
        command = [str(RETRIEVAL), "bench/retrieval/run.py", case.url, f"{output}/out", "--input-format", kind]
        options = ["--clip-model", RETRIEVAL_MODEL[case.model], "--num-prepro-workers", str(cores())]
        run = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=RETRIEVAL_TIMEOUT,
            check=True,
        )
    said: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return said


if __name__ == "__main__":
    main()
