"""The commands that look at a running service: ``clip-queue status`` and ``clip-queue jobs``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clip_queue.cli.terminal import console, fail

URL_HELP = "The service's URL; unset: CLIP_QUEUE_URL, else this machine's. The key is CLIP_QUEUE_API_KEY."


def status(
    url: Annotated[str | None, typer.Option(help=URL_HELP, show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look every two seconds, until Ctrl-C.")] = False,
) -> None:
    """What a service does now: workers, lanes and what waits in them, rates, memory.

    Exit status: 0 if it is ready, 1 if not, or if it does not answer.
    """
    from clip_queue.cli.service import Service, ServiceError
    from clip_queue.cli.status import show

    try:
        ready = show(console, Service(url), as_json=json, watching=watch)
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ServiceError as error:
        fail(str(error))
    except BrokenPipeError:  # of `| head`: typer ends without a message
        raise
    except OSError as error:
        fail(f"standard output cannot be written: {error.strerror}")
    raise typer.Exit(0 if ready else 1)


def jobs(
    job: Annotated[str | None, typer.Argument(help="Show this job alone, with its result.", show_default=False)] = None,
    state: Annotated[
        str | None, typer.Option(help="Those that are queued, running, succeeded, failed, …", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, the newest first.")] = 20,
    url: Annotated[str | None, typer.Option(help=URL_HELP, show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON a job.")] = False,
) -> None:
    """List the jobs that were submitted with the key, newest first."""
    from clip_queue.cli.jobs import show
    from clip_queue.cli.service import Service, ServiceError

    try:
        show(console, Service(url), job=job, state=state, limit=limit, as_json=json)
        sys.stdout.flush()
    except ServiceError as error:
        fail(str(error))
    except BrokenPipeError:  # of `| head`: typer ends without a message
        raise
    except OSError as error:
        fail(f"standard output cannot be written: {error.strerror}")
