"""What the command and the workers say to each other of a shard: its job's inputs, and how it can fail as a whole."""

from __future__ import annotations

import errno

import orjson

from clip_queue.bulk.output.layout import Output, Plan
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Inputs


class OutputError(ClipError):
    """The output cannot be written: nothing that follows would be either."""

    code, status = "output", 500


class WrongModel(ClipError):
    """This worker's model is not the plan's."""

    code, status = "wrong_model", 409


def inputs_of(output: Output, plan: Plan, shard: int) -> Inputs:
    """What a shard's job carries: where the plan is, and its place in it."""
    return Inputs([orjson.dumps({"output": output.url, "plan": plan.id, "shard": shard})])


def explained(error: OSError) -> str:
    """An output's failure and what to do."""
    advice = {
        errno.ENOSPC: "the disk is full: make room",
        errno.EDQUOT: "the quota is used up: make room",
        errno.EFBIG: "a file may not grow that large: raise the limit, or use a smaller --shard-size",
        errno.EROFS: "it is read-only: choose another output",
        errno.EACCES: "it may not be written: change its permissions, or choose another output",
    }
    return f"the output cannot be written: {advice.get(error.errno or 0, str(error))}"
