"""The plan's files: written as the source gives its shards, and opened for a single one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.output import plan_file
from clip_queue.bulk.output.layout import PLAN, PLAN_PARTS, Output
from clip_queue.bulk.output.plan_file import PART, SCHEMA, PlanFile, write_plan
from clip_queue.sources.source import Piece, Shard
from tests.counted_store import Counted
from tests.harness import ROOT

ROWS = 40  # of a shard of images


def images(shards: int, rows: int = ROWS) -> Iterator[Shard]:
    """Shards as a folder of images has them."""
    for n in range(shards):
        yield Shard([Piece(f"/data/photos/{n:06}/{i:06}.jpg".encode(), note=".txt") for i in range(rows)], rows)


def tars(shards: int) -> Iterator[Shard]:
    return (Shard([Piece(b"/data/%d.tar" % n, size=1000 + n)], None) for n in range(shards))


def write(output: Output, shards: Iterator[Shard]) -> tuple[int, int | None]:
    return write_plan(output, shards, lambda *_: None)


def one_file(output: Output, shards: Iterator[Shard]) -> None:
    """A plan as release 0.1.0 has written it."""
    with output.staged(PLAN) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for shard in shards:
            columns = [list(column) for column in zip(*shard.pieces, strict=True)]
            rows = [-1 if shard.rows is None else shard.rows] * len(shard.pieces)
            writer.write_table(pa.table([*columns, rows], schema=SCHEMA), row_group_size=len(rows))


@pytest.mark.parametrize("shards", [1, PART, PART + 1, 3 * PART - 1])
def test_each_shard_of_a_plan_is_found_by_its_number(tmp_path: Path, shards: int) -> None:
    output, expected = Output(str(tmp_path)), list(images(shards, 2))
    assert write(output, iter(expected)) == (shards, 2 * shards)
    file = PlanFile(output)
    assert [file.shard(n) for n in range(shards)] == expected
    for number in (shards - 1, 0, shards // 2):
        assert PlanFile(output).shard(number) == expected[number]
        assert file.rows(number) == 2
    with pytest.raises(OSError, match=f"has no shard {shards}"):
        file.shard(shards)


def test_a_plan_of_one_part_is_the_file_that_release_0_1_0_reads(tmp_path: Path) -> None:
    write(Output(str(tmp_path)), images(PART))
    assert [path.name for path in tmp_path.iterdir()] == [PLAN]
    file = pq.ParquetFile(tmp_path / PLAN)
    assert file.num_row_groups == PART
    assert file.read_row_group(PART - 1).to_pydict()["path"][0] == b"/data/photos/000127/000000.jpg"
    assert file.metadata.row_group(5).column(5).statistics.min == ROWS, "it reads a shard's rows there"


def test_a_plan_in_one_file_is_read_whatever_its_length(tmp_path: Path) -> None:
    output, shards = Output(str(tmp_path)), 2 * PART + 5
    one_file(output, images(shards, 2))
    expected = list(images(shards, 2))
    file = PlanFile(output)
    assert [file.shard(n) for n in range(shards)] == expected
    assert PlanFile(output).shard(shards - 1) == expected[-1]
    assert PlanFile(output).rows(PART) == 2
    one_file(output, tars(shards))
    assert PlanFile(output).weights(shards).tolist() == [1000 + n for n in range(shards)]


def test_the_sizes_of_containers_are_read_a_file_at_a_time(tmp_path: Path) -> None:
    output, shards = Output(str(tmp_path)), 2 * PART + 5
    assert write(output, tars(shards)) == (shards, None)
    looks: list[int] = []
    found = PlanFile(output).weights(shards, lambda: looks.append(1))
    assert found.tolist() == [1000 + n for n in range(shards)]
    assert len(looks) == 3
    pieces = [Piece(b"a", size=5), Piece(b"b", size=-1), Piece(b"c", size=7)]
    write(output, iter([Shard(pieces, None), Shard(pieces[2:], None)]))
    assert PlanFile(output).weights(2).tolist() == [12, 7]


def test_a_shard_of_a_long_plan_costs_no_more_to_open_than_one_of_a_short_one() -> None:
    """Two requests and as many bytes, where a store is asked for no more than is read."""
    costs = {}
    for shards in (PART, 20 * PART):
        Counted.anew()
        output = Output(f"counted://plan/{shards}")
        write(output, images(shards))
        Counted.asked.clear()
        PlanFile(output).shard(shards - 1)
        reads = [size for what, size in Counted.asked if what.startswith("read")]
        assert len(reads) == 2, "the footer, and the shard"
        assert [what.partition(" ")[0] for what, _ in Counted.asked].count("info") == 1
        costs[shards] = sum(reads)
    assert costs[20 * PART] < 1.1 * costs[PART]
    assert max(costs.values()) < 2**16 + 4096


def test_a_footer_is_read_at_once(tmp_path: Path) -> None:
    """64 KiB of a file's end are. Long names make it no longer."""
    long = (Shard([Piece(f"/{'x' * 200}/{n:05}/{i}.jpg".encode()) for i in range(3)], 3) for n in range(PART))
    write(Output(str(tmp_path)), long)
    assert pq.ParquetFile(tmp_path / PLAN).metadata.serialized_size < 2**16


WRITE = """
import pathlib, sys, tracemalloc
import pyarrow as pa
from clip_queue.bulk.output.layout import Output
from tests.unit.bulk.test_plan_file import PART, images, write_plan
folder = pathlib.Path(sys.argv[1])
for shards in (1, PART, 8 * PART):  # the first time, modules are loaded
    before, most = pa.total_allocated_bytes(), 0
    def seen(*_):
        global most
        most = max(most, pa.total_allocated_bytes() - before)
    tracemalloc.start()
    write_plan(Output(str(folder / str(shards))), images(shards), seen)
    print(most + tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_a_plan_s_memory_does_not_grow_with_its_length(tmp_path: Path) -> None:
    # In a process of its own: this one's threads and collections would count as well.
    run = [sys.executable, "-c", WRITE, str(tmp_path)]
    _, short, long = map(
        int, subprocess.run(run, check=True, capture_output=True, cwd=ROOT, timeout=120).stdout.split()
    )
    assert short > 1000
    assert long < 1.3 * short + 2**16


def test_files_of_a_longer_plan_that_was_cut_short_are_removed(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    write(output, images(3 * PART, 1))
    assert {path.name for path in (tmp_path / PLAN_PARTS).iterdir()} == {"plan_1.parquet", "plan_2.parquet"}
    write(output, images(2 * PART, 1))
    assert {path.name for path in (tmp_path / PLAN_PARTS).iterdir()} == {"plan_1.parquet"}
    write(output, images(3, 1))
    assert not any((tmp_path / PLAN_PARTS).iterdir())


def test_a_long_plan_s_files_appear_while_it_is_written(tmp_path: Path) -> None:
    """So no more of it than a file waits in a folder for temporary ones, and an output in its source is known."""
    there: list[bool] = []
    write_plan(Output(str(tmp_path)), images(PART + 3, 1), lambda *_: there.append((tmp_path / PLAN).exists()))
    assert there == [False] * PART + [True] * 3


def test_one_of_its_files_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, opened = Output(str(tmp_path)), []
    write(output, images(2 * PART, 1))
    parquet = pq.ParquetFile
    monkeypatch.setattr(plan_file.pq, "ParquetFile", lambda path, **o: opened.append(path) or parquet(path, **o))
    file = PlanFile(output)
    for number in range(2 * PART):
        file.rows(number)
    assert len(opened) == 2
    file.close()
