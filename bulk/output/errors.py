"""How an output can refuse a run: it cannot be written, or it belongs to another run."""

from __future__ import annotations

import errno

from clip_queue.shared.errors import BadInput, ClipError

_ADVICE = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EFBIG: "a file may not grow that large: raise the limit, or use a smaller --shard-size",
    errno.EROFS: "it is read-only: choose another output",
    errno.EEXIST: "there is a file of that name: choose a folder",
    errno.ENOTDIR: "there is a file of that name: choose a folder",
    errno.EACCES: "it may not be written: change its permissions, or choose another output",
}


class OutputError(ClipError):
    """The output cannot be written: nothing that follows would be either."""

    code, status = "output", 500

    @classmethod
    def because(cls, error: OSError) -> OutputError:
        """What the system said, and what to do."""
        return cls(f"the output cannot be written: {_ADVICE.get(error.errno or 0, str(error))}")


class WrongModel(ClipError):
    """A worker's model is not the one that the output was begun with."""

    code, status = "wrong_model", 409


class AnotherRun(BadInput):
    """The output belongs to a run of another source, model or options."""

    code = "another_run"


class ForeignOutput(BadInput):
    """The output holds files, and none of a run."""

    code = "foreign_output"


class SourceChanged(BadInput):
    """The source of a finished run is not what it was when it was planned."""

    code = "source_changed"
