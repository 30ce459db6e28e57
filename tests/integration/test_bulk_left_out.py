"""A dataset with several images a row, other files, and its output inside of it: told, counted, found again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.place import place_of
from tests.bulk_command import Embed
from tests.images import noise_image
from tests.outputs import checksums, matrix, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_images_of_lists_are_rows_and_the_output_in_the_source_stays_out_of_it(tmp_path: Path) -> None:
    pictures = [noise_image(seed) for seed in range(6)]
    rows = [[{"bytes": data, "path": "image.png"} for data in pictures[n : n + 2]] for n in (0, 2, 4)]
    data = tmp_path / "data"
    data.mkdir()
    columns = {"images": pa.array(rows, pa.list_(STRUCT)), "caption": ["a", "b", None], "n": range(3)}
    pq.write_table(pa.table(columns), data / "0.parquet")
    (data / "drawing.svg").write_text("<svg/>")
    output = data / "vectors"
    command = Embed(tmp_path, str(data), output, "--workers", 1, env={}).start()
    try:
        assert command.ended() == 0, command.said
        what = "images and texts: images from `images`, texts from `caption`"
        assert command.said.count(what) == 2, "before and after"
        assert "2 rows have no text: zeros stand for it" in command.said
        assert command.said.count("1 file of another kind is left out: 1 .svg (drawing.svg)") == 2
        assert len(matrix(output, "img_emb")) == len(matrix(output, "text_emb")) == 6
        before = checksums(output)
        assert command.start().ended() == 0, command.said
        assert "6 rows embedded" in command.said
        assert checksums(output) == before
    finally:
        command.stop()
    made = table(output)
    assert [(row["source_file"], row["source_row"], row["source_image"], row["n"]) for row in made] == [
        ("0.parquet", n // 2, n % 2, n // 2) for n in range(6)
    ]
    found = manifest.load(Output(str(output)))
    assert found is not None
    source = found.plan.source
    images = [registry.find_image(source, row["image_path"], Settings(), place_of(source, row)) for row in made]
    assert images == pictures
