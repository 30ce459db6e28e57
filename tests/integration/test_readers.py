"""An output in the layout ``table``, read by LanceDB and DuckDB as docs/bulk.md shows it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.output.writer import ShardWriter
from clip_queue.shared.models import ModelInfo
from clip_queue.sources.source import Row, Source
from tests.environments import clean_environment, program
from tests.harness import ROOT

pytestmark = [pytest.mark.readers, pytest.mark.timeout(240)]

DIMENSION = 8
SHARDS, ROWS = 3, 10
READERS = {"LanceDB": "lancedb", "DuckDB": "duckdb"}


def example(reader: str) -> str:
    """The example of a reader in docs/bulk.md."""
    page = (ROOT / "docs" / "bulk.md").read_text()
    found = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f"import {reader}" in block]
    assert len(found) == 1
    return found[0]


def row(shard: int, n: int) -> Row:
    return Row({"image_path": f"{shard}/{n}.jpg", "caption": f"caption {shard}/{n}", "id": f"own {shard}/{n}"})


def vector(shard: int, n: int) -> np.ndarray:
    return np.random.default_rng([shard, n]).standard_normal(DIMENSION).astype(np.float32)


@pytest.fixture(scope="module", params=["float16", "float32"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of three shards, images alone."""
    folder = tmp_path_factory.mktemp("readers")
    model = ModelInfo("m", "none", "f", DIMENSION, 8, (4, 4), "fp32")
    source = Source("s", "folder", images=True, texts=False, columns={"id": "string"})
    options = PlanOptions(dtype=request.param, layout="table")
    plan = RunPlan("p", source, model, options, SHARDS, SHARDS * ROWS)
    out = Output(str(folder / "vectors"))
    for shard in range(SHARDS):
        with ShardWriter(out, plan, shard) as writer:
            matrix = np.stack([vector(shard, n) for n in range(ROWS)])
            writer.write([row(shard, n) for n in range(ROWS)], {"image": matrix})
            writer.finish({})
    manifest.save(out, plan)
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_the_example_of_the_page_finds_the_row(output: Path, reader: str) -> None:
    query = vector(1, 4)
    ask = [
        "import json, warnings",
        "warnings.simplefilter('ignore')",
        f"query = {(query / np.linalg.norm(query)).tolist()}",
        example(READERS[reader]),
        "print(json.dumps([[hit['id'], hit['caption']] for hit in hits]))",
    ]
    command = [program("readers", "READERS_PYTHON"), "-c", "\n".join(ask)]
    env = clean_environment()
    done = subprocess.run(command, cwd=output, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    hits = json.loads(done.stdout.splitlines()[-1])
    assert hits[0] == [1_000_000_004, "caption 1/4"]
    assert len(hits) == 5
    everything = np.stack([vector(s, n) for s in range(SHARDS) for n in range(ROWS)])
    cosines = everything @ query / np.linalg.norm(everything, axis=1)
    assert [place // 10**9 * ROWS + place % 10**9 for place, _ in hits] == np.argsort(-cosines)[:5].tolist()
