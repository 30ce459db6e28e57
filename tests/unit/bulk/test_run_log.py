"""The log file of a run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from clip_queue import embed
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.run_log import run_log
from clip_queue.shared.errors import BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import SourceError


def test_it_has_what_the_command_logs_and_says_and_how_it_ended(tmp_path: Path) -> None:
    output, said = Output(str(tmp_path / "out")), list[str]()
    before = logging.getLogger("clip_queue").level, logging.getLogger().handlers[:]
    for _ in range(2):
        with run_log(tmp_path / "run.log", output, "INFO") as log:
            log.saying(said.append)("embedding texts only")
            logging.getLogger("clip_queue.bulk.run.runner").info("the store is away")
            logging.getLogger("clip_queue.bulk.run.runner").debug("of no interest")
            logging.getLogger("somebody.else").warning("be warned")
            report = Report("o", "m", "f", 2, rows=7, failed=1, complete=2, part="3/16")
            assert log.ended(report) is report
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert len(lines) == 10, "appended"
    assert all(line.startswith("embed | 2") for line in lines)
    assert [line.partition(": ")[2] for line in lines[1:5]] == [
        "embedding texts only",
        "the store is away",
        "be warned",
        "7 rows embedded, 1 failed; 2 of 2 shards of part 3/16 are complete",
    ]
    assert said == ["embedding texts only"] * 2
    assert (logging.getLogger("clip_queue").level, logging.getLogger().handlers) == before


def test_an_error_that_ends_the_run_is_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        embed(tmp_path / "missing.txt", tmp_path / "out", log_file=tmp_path / "early.log", format="text")
    with pytest.raises(KeyboardInterrupt), run_log(tmp_path / "run.log", Output(str(tmp_path) + " out"), "INFO"):
        raise KeyboardInterrupt
    assert (tmp_path / "run.log").read_text().endswith("ERROR clip_queue.bulk.run.run_log: ended: KeyboardInterrupt\n")
    assert "missing.txt" in (tmp_path / "early.log").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "why"),
    [("no folder/log", "No such file or directory"), ("", "Is a directory"), ("in.txt/log", "Not a dir")],
)
def test_one_that_cannot_be_written_is_refused_before_anything_else(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with pytest.raises(BadInput, match=rf"the log file .* cannot be written \({why}.*\): name another one"):
        embed(tmp_path / "in.txt", tmp_path / "out", log_file=tmp_path / name, settings=Settings())
    assert not (tmp_path / "out").exists()


def test_one_in_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="would lie in the output, whose files are the run's alone"):
        embed(tmp_path / "in.txt", tmp_path / "out", log_file=tmp_path / "out" / "log", settings=Settings())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_is_nothing_to_the_run(tmp_path: Path) -> None:
    with run_log("/dev/full", Output(str(tmp_path / "out")), "INFO") as log:
        log.saying(lambda line: None)("a line")
