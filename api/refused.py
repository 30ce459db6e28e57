"""A job whose request had items that were refused before it was submitted (``"on_error": "skip"``).

Such items are not among the job's inputs. So its worker neither sees nor counts them, and the indexes in its errors are
those of the inputs. Here job and result become those of all items of the request, and the prompts of a comparison get
their names in errors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clip_queue.shared.job import Job, JobResult

MAX_NAME = 80  # characters of a prompt's name in an error


def complete_job(job: Job, names: list[str] | None = None) -> Job:
    """A job with its refused items counted, and its error about the item of the request; ``names``: of its prompts."""
    if not job.refused and not job.error:
        return job
    error, more = _shown(job, job.error, names), len(job.refused)
    return replace(job, total=job.total + more, failed=job.failed + more, error=error, refused=[])


def complete_result(job: Job, result: JobResult) -> JobResult:
    """The result of ``job`` (as it is in the store) with the errors of all items of the request, by index."""
    if not job.refused and not result.error:
        return result
    errors = result.errors
    if job.refused:
        places = _places(job)
        errors = sorted((*job.refused, *(_moved(e, places) for e in errors)), key=_index)
    return replace(result, errors=errors, error=_shown(job, result.error, result.names))


def _shown(job: Job, error: dict[str, Any] | None, names: list[str] | None) -> dict[str, Any] | None:
    """The error of a job: if that of an item ended it, the first item's, with the name of the prompt that it is."""
    if error is None or error.get("index") is None:
        return error
    if job.refused:
        own = [_moved(error, _places(job))] if job.total else []  # a job without inputs failed with a refused item's
        return min((*job.refused, *own), key=_index)
    return {**error, "message": with_name(error["message"], names[error["index"]])} if names else error


def _places(job: Job) -> list[int]:
    """The place in the request of each input."""
    missing = {_index(error) for error in job.refused}
    return [place for place in range(job.total + len(missing)) if place not in missing]


def _moved(error: dict[str, Any], places: list[int]) -> dict[str, Any]:
    return {**error, "index": places[error["index"]]}


def _index(error: dict[str, Any]) -> int:
    return int(error["index"])


def with_name(message: str, name: str) -> str:
    """A message about a prompt that has a name."""
    return f"{message} (prompt {name[:MAX_NAME]!r})"
