"""A run that release 0.1.0 began is finished by this release: what is there stays, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from clip_queue import Settings, embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from tests.outputs import checksums

DATA = Path(__file__).parent.parent / "data"
PLACE = b"/data/lines.txt"  # where the source was when the run was begun


def test_a_run_begun_by_release_0_1_0_is_finished(tmp_path: Path) -> None:
    source, output = tmp_path / "lines.txt", tmp_path / "out"
    shutil.copy(DATA / "run-0.1.0.txt", source)
    shutil.copytree(DATA / "run-0.1.0", output)
    moved(output, source)
    before = {name: digest for name, digest in checksums(output).items() if name.startswith(("text_emb", "metadata/"))}
    assert len(before) == 8, "four of its six shards are complete"

    # Nothing but what names the run is given: the rest is as the run was begun.
    report = embed(str(source), str(output), workers=1, settings=Settings(precision="fp32", models=["emoji-mini"]))

    assert (report.rows, report.resumed, report.failed, report.status) == (60, 40, 0, 0)
    after = checksums(output)
    assert {name: after[name] for name in before} == before
    vectors = [np.load(path) for path in sorted((output / "text_emb").iterdir())]
    assert [(v.shape, v.dtype) for v in vectors] == [((10, 128), np.float16)] * 6
    captions = [
        row for path in sorted((output / "metadata").iterdir()) for row in pq.read_table(path)["caption"].to_pylist()
    ]
    assert captions == [f"thing number {i}" for i in range(60)]
    found = manifest.load(Output(str(output)))
    assert found is not None
    assert found.result is not None


def moved(output: Path, source: Path) -> None:
    """Make plan and manifest name the place where the source is now."""
    plan = pq.read_table(output / "plan.parquet")
    schema = plan.schema
    paths = [path.replace(PLACE, str(source).encode()) for path in plan["path"].to_pylist()]
    plan = plan.set_column(0, schema.field(0), [paths])
    with pq.ParquetWriter(output / "plan.parquet", schema) as writer:
        for row in range(len(plan)):  # a row group a shard
            writer.write_table(plan.slice(row, 1))
    text = (output / "manifest.json").read_text()
    text = text.replace(PLACE.decode(), str(source)).replace('"root": "/data"', f'"root": "{source.parent}"')
    (output / "manifest.json").write_text(text)
