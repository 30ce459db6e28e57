"""How many of the 10 nearest rows an index finds, and how long it takes, against comparing every row."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from bench.common import console
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.bulk.search.index import Index
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.vectors import Matrix
from clip_queue.sources.source import Row, Source

SHARDS, ROWS, DIMENSION = 20, 10_000, 128
CENTRES, SPREAD = 1000, 0.5  # of the clustered vectors
QUERIES, TOP = 100, 10


def random(rng: np.random.Generator, count: int) -> Matrix:
    return rng.standard_normal((count, DIMENSION)).astype(np.float32)


def clustered(rng: np.random.Generator, count: int) -> Matrix:
    centres = random(np.random.default_rng(1), CENTRES)
    return centres[rng.integers(0, CENTRES, count)] + SPREAD * random(rng, count)


def main() -> None:
    for make in (random, clustered):
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng(0)
            _write(Output(f"{folder}/out"), [make(rng, ROWS) for _ in range(SHARDS)])
            began = time.perf_counter()
            Index(f"{folder}/out", exact_below=1).build_index(lambda share: None)
            built = time.perf_counter() - began
            size = sum(path.stat().st_size for path in Path(folder, "out/index").iterdir())
            index, queries = Index(f"{folder}/out", exact_below=1), make(rng, QUERIES)
            assert index.uses_index
            found, seconds = {}, {}
            for exact in (True, False):
                began = time.perf_counter()
                found[exact] = [{(hit.shard, hit.row) for hit in index.nearest(q, TOP, exact=exact)} for q in queries]
                seconds[exact] = (time.perf_counter() - began) / QUERIES
            recall = sum(len(a & b) for a, b in zip(found[True], found[False], strict=True)) / (QUERIES * TOP)
            console.print(
                f"{make.__name__}, {SHARDS * ROWS:,} × {DIMENSION}: recall@{TOP} {recall:.3f}; a search "
                f"{seconds[False] * 1000:.0f} ms, of every row {seconds[True] * 1000:.0f} ms; built in {built:.0f} s, "
                f"{size / 2**20:.0f} MiB"
            )


def _write(output: Output, matrices: list[Matrix]) -> None:
    model = ModelInfo("m", "none", "f", DIMENSION, 8, (4, 4), "fp32")
    plan = RunPlan("p", Source("s", "folder", images=True, texts=False), model, PlanOptions(), SHARDS, SHARDS * ROWS)
    for shard, matrix in enumerate(matrices):
        with ShardWriter(output, plan, shard) as writer:
            writer.write([Row({"image_path": f"{shard}/{n}"}) for n in range(ROWS)], {"image": matrix})
            writer.finish({})
    manifest.save(output, plan)


if __name__ == "__main__":
    main()
