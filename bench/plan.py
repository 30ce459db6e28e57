"""A plan of up to a hundred million rows: made, opened for a shard, and resumed. Nothing is embedded."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.table import Table

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.markers import scan
from clip_queue.bulk.output.plan_file import PlanFile, write_plan
from clip_queue.bulk.output.summaries import Summaries
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.source import Piece, Shard, Source

SIZES = (10**6, 10**7, 10**8)  # rows
SHARD = 10_000  # rows
FILE = 10**6  # lines of a file; the same one has many names
OPENED = 50  # shards that are opened, drawn by chance
LEFT = 16  # shards that are not complete when the run is resumed
KINDS = {"lines": "lines of text, counted", "images": "names of images, as a folder has them"}
TIMEOUT = 3600.0  # seconds that one case may take


def main() -> None:
    from bench.common import console  # which loads torch: the processes that are measured do without

    for kind, words in KINDS.items():
        table = Table(title=f"{words}, shards of {SHARD:,} rows", title_justify="left")
        table.add_column("figure")
        cases = [measured(kind, rows) for rows in SIZES]
        for rows in SIZES:
            table.add_column(f"{rows:,} rows", justify="right")
        for name in cases[0]:
            table.add_row(name, *(case[name] for case in cases))
        console.print(table)


def measured(kind: str, rows: int) -> dict[str, str]:
    """The figures of a plan, by their names; each part in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.plan", kind, str(rows), folder]
        plan, again = (
            json.loads(subprocess.run([*command, part], capture_output=True, check=True, timeout=TIMEOUT).stdout)
            for part in ("plan", "resume")
        )
    return {
        "to plan": f"{plan['seconds']:.1f} s",
        "of the CPU": f"{plan['cpu']:.1f} s",
        "peak memory": f"{plan['peak']:.0f} MiB",
        "the plan's files": f"{plan['bytes'] / 1e6:,.1f} MB",
        "to open a shard": f"{plan['open'] * 1e3:.1f} ms",
        "of the CPU ": f"{plan['open_cpu'] * 1e3:.1f} ms",
        "read for it": f"{plan['read'] / 1e3:.0f} kB",
        "to resume": f"{again['seconds']:.2f} s",
        "of the CPU  ": f"{again['cpu']:.3f} s",
        "read for it ": f"{again['read'] / 1e6:.2f} MB",
        "peak memory ": f"{again['peak']:.0f} MiB",
    }


def make(kind: str, rows: int, folder: Path) -> dict[str, float]:
    """Plan, and open some shards: the figures."""
    output = Output(str(folder / "out"))
    shards = lines(rows, folder) if kind == "lines" else images(rows)
    began, cpu = time.monotonic(), time.process_time()
    number, counted = write_plan(output, shards, lambda *_: None)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    assert (number, counted) == (rows // SHARD, rows)
    peak = peak_memory()
    size = sum(path.stat().st_size for path in (folder / "out").rglob("*.parquet"))
    opening = opened(output, number)
    complete(output, rows)
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "bytes": size, **opening}


def opened(output: Output, number: int) -> dict[str, float]:
    """What it takes to open some of so many shards, each as a worker does: medians."""
    times, cpu, reads = [], [], []
    draw = random.Random(0)
    for _ in range(OPENED):
        before, began, used = bytes_read(), time.monotonic(), time.process_time()
        PlanFile(output).shard(draw.randrange(number))
        times.append(time.monotonic() - began)
        cpu.append(time.process_time() - used)
        reads.append(bytes_read() - before)
    figures = {"open": times, "open_cpu": cpu, "read": reads}
    return {name: statistics.median(values) for name, values in figures.items()}


def resume(rows: int, folder: Path) -> dict[str, float]:
    """Look at a run all of whose shards but some are complete, as a command that goes on does: the figures."""
    output, plan = Output(str(folder / "out")), run_plan(rows)
    before, began, cpu = bytes_read(), time.monotonic(), time.process_time()
    left = [shard for shard, marker in scan(output, plan) if marker is None]
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    assert left == list(range(plan.shards - LEFT, plan.shards))
    return {"seconds": seconds, "cpu": cpu, "read": bytes_read() - before, "peak": peak_memory()}


def lines(rows: int, folder: Path) -> Iterator[Shard]:
    """The shards of files of a million lines: one, by many names."""
    (source := folder / "in").mkdir()
    for number in range(rows // FILE):
        path = source / f"{number:04}.txt"
        if number:
            os.link(source / "0000.txt", path)
        else:
            with path.open("w") as file:
                file.writelines(f"a photo of thing {n}\n" for n in range(FILE))
    return registry.plan_shards(Source(str(source), "text"), SHARD, Settings())[1]


def images(rows: int) -> Iterator[Shard]:
    """The shards of a folder of images with captions, without the folder: 10,000 images in each folder below it."""
    pieces = (Piece(b"/data/photos/%05d/%09d.jpg" % (n // 10_000, n), note=".txt") for n in range(rows))
    while shard := list(islice(pieces, SHARD)):
        yield Shard(shard, len(shard))


def run_plan(rows: int) -> RunPlan:
    model = ModelInfo("m", "none", "f", 128, 8, (4, 4), "fp32")
    source = Source("/data", "folder", images=True, texts=True)
    return RunPlan("bench", source, model, PlanOptions(), rows // SHARD, rows)


def complete(output: Output, rows: int) -> None:
    """Files of all shards but some, small ones, and their markers, as a run that is killed leaves them."""
    plan, here = run_plan(rows), output.local
    assert here
    summaries = Summaries(output, plan)
    for shard in range(plan.shards - LEFT):
        names = output.names(shard, plan.shards)
        for name in names.values():
            (here / name).parent.mkdir(exist_ok=True)
        files = {names[kind]: {"bytes": 8, "blake2b": "0" * 32} for kind in ("image", "text", "metadata")}
        for name in files:
            (here / name).write_bytes(b"12345678")
        marker: dict[str, Any] = {"plan": plan.id, "shard": shard, "rows": SHARD, "failed": 0, "files": files}
        marker |= {"errors": {}, "halves": 0, "cut": 0, "left_out": {}, "without_text": 0, "seconds": {"all": 1.0}}
        (here / names["shard"]).write_bytes(orjson.dumps(marker))
        summaries.add(marker)


def peak_memory() -> float:
    """The peak of this process, MiB."""
    about = Path("/proc/self/status").read_text().split()
    return int(about[about.index("VmHWM:") + 1]) / 1024


def bytes_read() -> int:
    """What this process has read of files."""
    about = Path("/proc/self/io").read_text().split()
    return int(about[about.index("rchar:") + 1])


if __name__ == "__main__":
    kind, rows, folder, part = sys.argv[1:]
    print(json.dumps(make(kind, int(rows), Path(folder)) if part == "plan" else resume(int(rows), Path(folder))))
