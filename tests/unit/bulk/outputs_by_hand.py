"""Outputs for tests, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.search.index import Hit
from clip_queue.shared.models import ModelInfo
from clip_queue.sources.source import Source

Matrix = NDArray[Any]

MODEL = ModelInfo("emoji-mini", "shipped:emoji-mini", "f" * 16, 24, 32, (64, 64), "fp32")


def make_output(
    url: str,
    images: Sequence[Matrix] = (),
    texts: Sequence[Matrix] = (),
    *,
    model: ModelInfo = MODEL,
    names: Sequence[str] | None = None,
    missing: Sequence[int] = (),
    row_group: int = 7,
) -> Output:
    """An output by hand: a shard for each matrix, its row k of shard n with the path ``n/k`` unless named."""
    output = Output(url)
    shards = images or texts
    source = Source("/images", "folder", images=bool(images), texts=bool(texts), columns={"number": "int64"})
    plan = RunPlan("plan", source, model, PlanOptions(), len(shards), sum(map(len, shards)))
    number = 0
    for shard, matrix in enumerate(shards):
        files = output.names(shard, len(shards))
        paths = [names[number + row] if names else f"{shard}/{row}" for row in range(len(matrix))]
        table = pa.table(
            {
                "image_path": pa.array(paths, pa.string()),
                "caption": pa.array([f"caption {path}" for path in paths], pa.string()),
                "number": pa.array(range(number, number + len(matrix)), pa.int64()),
                "error": pa.array([None] * len(matrix), pa.string()),
            }
        )
        number += len(matrix)
        with output.staged(files["metadata"]) as path:
            pq.write_table(table, path, row_group_size=row_group)
        for kind, all_of in (("image", images), ("text", texts)):
            if all_of:
                with output.staged(files[kind]) as path:
                    np.save(path, all_of[shard])
        if shard not in missing:
            sizes = {name: {"bytes": output.size(name)} for name in files.values() if output.size(name)}
            marker = {"plan": plan.id, "shard": shard, "rows": len(matrix), "failed": 0, "files": sizes}
            output.write(files["shard"], orjson.dumps(marker))
    manifest.save(output, plan)
    return output


def cosines(matrix: Matrix, query: Matrix) -> Matrix:
    wide = matrix.astype(np.float64)
    return np.asarray(wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query))


def places(hits: Sequence[Hit]) -> list[tuple[int, int]]:
    return [(hit.shard, hit.row) for hit in hits]
