"""The commands of ``clip-queue``. What each does is in the module of its name, loaded when it is called."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from shared import __version__
from shared.models import parse_models
from shared.settings import Settings
from stack.machine import StackError

app = typer.Typer(
    help="CLIP embeddings through a queue: serve them, look at what can be served, see it work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a pretty traceback shows the values of variables, keys among them
)
console = Console()
errors = Console(stderr=True)


def fail(message: str) -> NoReturn:
    """End with exit code 1 and a line that says why."""
    errors.print(f"[bold red]clip-queue:[/] {escape(message)}", soft_wrap=True, highlight=False)
    raise typer.Exit(1)


def load_settings(**given: Any) -> Settings:
    """The settings of the environment, with those given on the command line on top; ends where they are wrong."""
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        parse_models(settings.models)
    except ValidationError as error:  # its own text would show the values, keys among them
        problems = (f"CLIP_QUEUE_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        fail("wrong settings: " + "; ".join(problems))
    except ValueError as error:
        fail(str(error))
    return settings


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True)] = False,
) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwinds, as Ctrl-C does
    if version:
        console.print(f"clip-queue {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback only with API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 9001,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve, NAME or NAME=SOURCE; again for more.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Worker processes; unset: one a GPU, or one.", show_default=False)
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
) -> None:
    """Serve: Valkey, workers and the API, restarted when they die, until Ctrl-C."""
    from cli.up import up as serve

    settings = load_settings(models=model, redis_url=redis, data_dir=data_dir)
    given = settings.redis_url.get_secret_value() if "redis_url" in settings.model_fields_set else None
    try:
        serve(console, settings, host=host, port=port, workers=workers, redis_url=given)
    except StackError as error:
        fail(str(error))


@app.command()
def models() -> None:
    """List what can be served, and what of it is on this machine already."""
    from cli.models import table

    console.print(table(load_settings()))


@app.command()
def demo() -> None:
    """Embed and compare the sample pictures, end to end on this machine."""
    from cli.demo import demo as show

    try:
        show(console)
    except StackError as error:
        fail(str(error))
