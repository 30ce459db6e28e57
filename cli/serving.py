"""The command that serves: ``clip-queue up``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip_queue.cli.settings import as_typed, load_settings
from clip_queue.cli.terminal import console, errors, fail
from clip_queue.shared.models import CATALOGUE, parse_model
from clip_queue.stack.machine import StackError

MAX_WORKERS = 64
MAX_APIS = 64


class BadSplit(ValueError):
    """What ``--serve`` says cannot be done. The message says what to write."""


def parse_processes(text: str, most: int, option: str) -> int | None:
    """A number of processes; None: ``auto``."""
    if text == "auto":
        return None
    if text.isascii() and text.isdigit() and 1 <= int(text) <= most:
        return int(text)
    raise typer.BadParameter(f"{text!r} is neither 'auto' nor a number from 1 to {most}.", param_hint=option)


def split(text: str) -> list[str]:
    """The model of each worker, of ``MODEL:N,MODEL:N``; without ``:N`` one. A model may be ``NAME=SOURCE``.

    Raises:
        BadSplit: there are no workers, or too many.
    """
    models: list[str] = []
    for part in text.split(","):
        model, colon, number = part.strip().rpartition(":")
        if not (colon and number.isascii() and number.isdigit()):
            model, number = part.strip(), "1"
        if not model or not 1 <= int(number) <= MAX_WORKERS - len(models):
            raise BadSplit(
                f"--serve {text!r} is not understood: MODEL:WORKERS, with commas between, as in "
                f"ViT-B-16:2,ViT-L-14:1, and at most {MAX_WORKERS} workers"
            )
        try:
            parse_model(model)
        except ValueError as error:
            raise BadSplit(f"--serve: {error}") from None
        models += [model] * int(number)
    return models


def known_models(incomplete: str) -> list[str]:
    """The models that complete what was typed."""
    return [name for name in CATALOGUE if name.startswith(incomplete)]


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback only with API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 9001,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve, NAME or NAME=SOURCE; again for more.",
            show_default=False,
            autocompletion=known_models,
        ),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|auto", help="Worker processes, each with all models. auto: one a GPU, or one.")
    ] = "auto",
    api_processes: Annotated[
        str, typer.Option(metavar="N|auto", help="API processes on the port. auto: one for four cores, at most eight.")
    ] = "auto",
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL:N,…",
            help="Models and how many workers each has to itself, in place of --model and --workers.",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="URL of a Redis or Valkey to use instead of the embedded one; CLIP_QUEUE_REDIS_URL does the same "
            "and keeps a password off the command line.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the queue's file and the logs.", show_default="~/.clip-queue")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="CUDA where there is one")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16 or int8.", show_default="what suits the device")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Most items in a forward pass.", show_default="256 on CUDA, 32 on a CPU")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.", show_default="INFO")] = None,
) -> None:
    """Serve: Valkey, workers and the API, restarted when they die, until Ctrl-C."""
    from clip_queue.cli.up import up as run_up

    if serve is not None and (model or workers != "auto"):
        fail("--serve says the models and how many workers each has: give it, or --model and --workers")
    try:
        serves = None if serve is None else split(serve)
    except BadSplit as error:
        fail(str(error))
    given = {
        "models": model if serves is None else list(dict.fromkeys(serves)),
        "redis_url": redis,
        "data_dir": data_dir,
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "log_level": log_level,
    }
    settings = load_settings(**given)
    url = settings.redis_url.get_secret_value() if "redis_url" in settings.model_fields_set else None
    number = parse_processes(workers, MAX_WORKERS, "--workers")
    apis = parse_processes(api_processes, MAX_APIS, "--api-processes")
    try:
        run_up(console, errors, settings, host=host, port=port, workers=number, serves=serves, apis=apis, redis_url=url)
    except StackError as error:
        fail(as_typed(str(error), **given))
