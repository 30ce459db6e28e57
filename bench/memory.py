"""The peak memory of a worker after a shard of 1,000 rows and of 50,000 rows. It should be the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench import datasets
from bench.common import Row, served, show
from clip_queue.bulk.run.embed import embed

SIZES = (1_000, 50_000)
MODEL = "emoji-mini"


def main() -> None:
    peaks = {size: peak(size) for size in SIZES}
    ratio = peaks[SIZES[1]] / peaks[SIZES[0]]
    show(
        f"peak memory of the worker, {MODEL}, one shard of 256 px JPEGs",
        [*(Row(f"{size:,} rows", [mib], "MiB") for size, mib in peaks.items()), Row("ratio", [ratio], "", "≤ 1.15")],
    )


def peak(rows: int) -> float:
    """The peak memory, in MiB, of a new worker that has embedded one shard of so many rows."""
    source = datasets.links(rows)
    with served(MODEL) as stack, tempfile.TemporaryDirectory() as output:
        report = embed(source, output, model=MODEL, redis_url=stack.redis_url, settings=stack.settings, shard_size=rows)
        assert (report.rows, report.shards) == (rows, 1)
        status = Path(f"/proc/{stack.pids['worker-1']}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
