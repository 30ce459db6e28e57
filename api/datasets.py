"""Submitting a run over a dataset: it goes into the store, and a worker finds and leads it."""

from __future__ import annotations

import asyncio
import os
import threading

from clip_queue.api.dataset_request import EmbedDatasetJob
from clip_queue.api.job_client import JobClient
from clip_queue.shared.held import ByteLimits
from clip_queue.shared.job import Job
from clip_queue.shared.lane import Lane
from clip_queue.shared.roots import OutsideRoots, RealRoots, folder_of
from clip_queue.shared.runs import RunRequest, RunSubmission, accept_run
from clip_queue.shared.settings import Settings
from clip_queue.shared.submissions import Accepted

LOOK_TIMEOUT = 2.0  # seconds that this machine's file system may take to tell where a path leads

_looks = threading.BoundedSemaphore(4)  # threads that a file system which hangs can keep


async def submit(client: JobClient, sent: EmbedDatasetJob, owner: str, idempotency: str, digest: str) -> Accepted:
    """Accept a run.

    Raises:
        OutsideRoots, BadInput: it may not read or write there.
        UnknownModel: there is no such model.
        OutputBusy, QueueFull, KeyReused: it is refused.
    """
    settings = client.settings
    request = sent.request(settings)
    await _look(request, settings)
    model = await client.registry.resolve(sent.model, later=True)
    job = Job(
        kind=sent.kind,
        model=model,
        total=0,
        lane=Lane.BULK,
        owner=owner,
        ttl=int(settings.result_ttl * 1000),
    )
    submission = RunSubmission(
        job,
        request,
        settings.max_bulk_runs,
        deadline_in=sent.deadline_s or 0.0,
        idempotency=idempotency,
        digest=digest,
        bytes=ByteLimits.of(settings),
    )
    return await client.execute(accept_run(submission))


async def _look(request: RunRequest, settings: Settings) -> None:
    """Refuse what leads elsewhere by links, as far as this machine has the files. The worker that leads looks again.

    Raises:
        OutsideRoots: it does.
    """
    if not _looks.acquire(blocking=False):
        return
    looking = asyncio.get_running_loop().run_in_executor(None, _check_links, request, settings)
    looking.add_done_callback(lambda done: done.exception())  # nobody may be left
    done, _ = await asyncio.wait({looking}, timeout=LOOK_TIMEOUT)  # one that hangs is the workers' trouble
    for each in done:
        each.result()


def _check_links(request: RunRequest, settings: Settings) -> None:
    try:
        _check(request, settings)
    finally:
        _looks.release()


def _check(request: RunRequest, settings: Settings) -> None:
    inside, below = RealRoots(settings.bulk_sources), RealRoots(settings.bulk_outputs)
    read = [*request.source, *filter(None, [request.options.get("image_root")])]
    for path in (folder_of(each) for each in read if each.startswith("/")):
        if os.path.lexists(path) and not inside.hold(path):
            raise OutsideRoots("A source leads out of the places that may be read (setting bulk_sources).")
    if request.output.startswith("/") and not below.hold(request.output):
        raise OutsideRoots("Field 'output' leads out of the places that may be written (setting bulk_outputs).")
