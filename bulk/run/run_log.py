"""The log file of a run: what the command logs and says, and all that its embedded stack logs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.report import Report
from clip_queue.shared.errors import BadInput
from clip_queue.stack.log_file import LogFile

COMMAND = "embed"  # the name of the command's own lines
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger(__name__)


class RunLog:
    """Where a run logs to. Without a ``file`` it logs as any library does: to whatever handlers there are."""

    def __init__(self, file: LogFile | None) -> None:
        self.file = file

    def saying(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say``, whose lines are logged as well."""

        def both(line: str) -> None:
            log.info("%s", line)
            say(line)

        return both if self.file else say

    def ended(self, report: Report) -> Report:
        """Log how the run has ended; returns the report of it."""
        if self.file:
            part = f" of part {report.part}" if report.part else ""
            shards = f"{report.complete} of {report.shards} shards{part} are complete"
            log.info("%d rows embedded, %d failed; %s", report.rows, report.failed, shards)
        return report


class _Handler(logging.Handler):
    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(COMMAND, self.format(record).encode(errors="replace") + b"\n")
        except Exception:  # a line that cannot be formatted
            self.handleError(record)


@contextmanager
def run_log(path: str | Path | None, output: Output, level: str) -> Iterator[RunLog]:
    """Log to a file while the block lasts, from ``level`` on; ``path`` None: to none.

    Raises:
        BadInput: it cannot be written, or would lie in the output.
    """
    if path is None:
        yield RunLog(None)
        return
    at = Path(path).expanduser().absolute()
    if output.local and output.local.resolve() in at.resolve().parents:
        raise BadInput(
            f"the log file {at} would lie in the output, whose files are the run's alone: name one beside it"
        )
    try:
        file = LogFile(at)
    except OSError as error:
        raise BadInput(f"the log file {at} cannot be written ({error.strerror}): name another one") from error
    handler, root, own = _Handler(file), logging.getLogger(), logging.getLogger("clip_queue")
    before = own.level
    own.setLevel(level)
    root.addHandler(handler)
    try:
        log.info("pid %d, output %s", os.getpid(), output.url)
        yield RunLog(file)
    except BaseException as error:
        log.error("ended: %s", str(error) or type(error).__name__)
        raise
    finally:
        root.removeHandler(handler)
        own.setLevel(before)
        file.close()
