"""Log lines as JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from clip_queue.shared import json_log
from clip_queue.shared.settings import Settings

JSON = Settings(log_format="json")


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    logger, written = logging.getLogger("of.a.test"), io.StringIO()
    handler = logging.StreamHandler(written)
    logger.addHandler(handler)
    yield logger, written
    logger.removeHandler(handler)
    logging.captureWarnings(False)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_is_an_object_with_what_is_known_of_it(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    json_log.install(JSON, logger)
    logger.warning(
        "jobs: %d\nand “more”", 3, extra={"job_id": "j", "model": "m", "code": "", "secret": "s", "items": 0}
    )
    (line,) = lines(written)
    time = line.pop("time")
    assert time.endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": "of.a.test",
        "message": "jobs: 3\nand “more”",
        "job_id": "j",
        "model": "m",
        "items": 0,
    }


def test_an_exception_is_part_of_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    json_log.install(JSON, logger)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed")
    logger.error("without", exc_info=(None, None, None))
    first, second = lines(written)
    assert first["exception"].endswith("ValueError: two\nlines")
    assert "exception" not in second


def test_as_text_nothing_is_touched(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    json_log.install(Settings(), logger)
    logger.warning("plain")
    assert written.getvalue() == "plain\n"


@pytest.mark.parametrize(("level", "of_uvicorn", "written"), [("ERROR", "ERROR", []), ("INFO", "INFO", ["a", "b"])])
def test_the_level_counts_for_this_projects_lines_and_uvicorns(
    level: str, of_uvicorn: str, written: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    loggers = [logging.getLogger(name) for name in (json_log.OURS, *json_log.UVICORN)]
    before = [(each.level, list(each.handlers)) for each in loggers]
    try:
        for each in loggers[1:]:
            each.setLevel(logging.INFO)
        loggers[2].setLevel(logging.DEBUG)  # as uvicorn was told
        json_log.set_level(Settings(log_level=level))
        said = logging.getLogger(f"{json_log.OURS}.some.part")
        said.info("a")
        said.warning("b")
        assert capsys.readouterr().err.splitlines() == written
        assert [logging.getLevelName(each.level) for each in loggers[1:]] == [of_uvicorn, "DEBUG", of_uvicorn]
    finally:
        for each, (old, handlers) in zip(loggers, before, strict=True):
            each.setLevel(old)
            each.handlers = handlers
