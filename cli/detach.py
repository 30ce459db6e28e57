"""``clip-queue embed --detach``: the run goes to the workers, which lead it; the command does not wait for it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from rich.console import Console
from rich.markup import escape

from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.reading import Given
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.cli.terminal import print_line
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Job, Kind
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import parse_model
from clip_queue.shared.owners import owner_of
from clip_queue.shared.runs import RunRequest, RunSubmission, accept_run
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.sources.storage import absolute


def detach(
    console: Console,
    settings: Settings,
    source: Given,
    output: str,
    *,
    redis_url: str | None,
    workers: int | None,
    options: dict[str, Any],
) -> None:
    """Submit a run and print its job. ``options`` are those of :func:`clip_queue.embed`.

    Raises:
        ClipError: it was refused.
    """
    if redis_url is None:
        raise BadInput("--detach gives the run to the workers of a service: name its Redis with --redis")
    if workers is not None:
        raise BadInput("--workers starts workers here, and --detach gives the run to others: leave one of them out")
    given = {name: value for name, value in options.items() if value is not None}
    model = parse_model(given.pop("model", None) or settings.models[0]).name
    if given.get("image_root"):
        given["image_root"] = absolute(str(given["image_root"]))
    asked = EmbedRequest.of(source, given)  # type: ignore[arg-type]
    target = Output(output)
    if target.url == asked.source.url:
        raise OutputError("source and output are the same: choose another output")
    keys = [key.get_secret_value() for key in settings.api_keys]
    job = Job(
        kind=Kind.EMBED_DATASET,
        model=model,
        total=0,
        lane=Lane.BULK,
        owner=owner_of(keys[0] if keys else None),
        ttl=int(settings.result_ttl * 1000),
    )
    # Who may write to the Redis may read what the workers may: such a run is not confined, as one that a command leads.
    # A format that was not given is the leader's to find, as that of an output that is gone on with.
    request = RunRequest([asked.source.url], target.url, given, confined=False)
    with closing(Store.connect(settings)) as store:
        accepted = store.execute(accept_run(RunSubmission(job, request, settings.max_bulk_runs)))
    print_line(console, f"[green]✓[/] job {accepted.job_id}: the workers lead it, into {escape(target.url)}")
    print_line(console, "  to watch it, on an API beside the same Redis:")
    print_line(console, f"    curl http://…/jobs/{accepted.job_id}          (its progress, and in the end its report)")
    print_line(console, f"    curl http://…/jobs/{accepted.job_id}/events   (each change)")
    print_line(console, f"  to stop it: curl -X DELETE http://…/jobs/{accepted.job_id}")
    print_line(console, "  what is embedded stays, and the same command again goes on.")
