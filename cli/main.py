"""The commands of ``clip-queue``. The module of a command has its name; it is imported when the command is called."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from clip_queue.bulk.run.options import options
from clip_queue.cli import looking, serving
from clip_queue.cli.options import with_options
from clip_queue.cli.settings import as_typed, load_settings
from clip_queue.cli.terminal import console, errors, fail, print_error, print_line
from clip_queue.stack.machine import StackError
from clip_queue.version import __version__

app = typer.Typer(
    help="CLIP embeddings through a queue: serve them, embed a dataset, search it, see it work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they would show the values of variables, also of keys
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True)] = False,
) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # an exception, so that contexts end
    if version:
        print_line(console, f"clip-queue {__version__}")
        raise typer.Exit


app.command()(serving.up)


@app.command()
def models(json: Annotated[bool, typer.Option("--json", help="A line of JSON a model.")] = False) -> None:
    """List what can be served, and what of it is on this machine already."""
    from clip_queue.cli.models import lines, table

    settings = load_settings()
    if json:
        print("\n".join(lines(settings)))
    else:
        console.print(table(settings))


app.command()(looking.status)
app.command()(looking.jobs)


@app.command()
def demo() -> None:
    """Embed and compare the sample images, end to end on this machine."""
    from clip_queue.cli.demo import MODEL
    from clip_queue.cli.demo import demo as run_demo

    try:
        run_demo(console, load_settings(models=[MODEL], api_keys=[]))
    except StackError as error:
        fail(str(error))


@app.command()
@with_options(options())
def embed(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folder of images, tars, .zip, parquet, .txt, .csv, .jsonl or .json; path, glob or URL; several files."
        ),
    ],
    output: Annotated[str, typer.Argument(help="Folder for vectors and metadata; path or URL.")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Worker processes to start; unset: one a GPU, or some.", show_default=False),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            help="Have the workers on this Redis do it, which must see SOURCE and OUTPUT too; unset: start what is "
            "needed here. CLIP_QUEUE_REDIS_URL does the same and keeps a password off the command line.",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Do the Kth of N parts alone, such as 3/16: commands on other machines do the others, and the last "
            "one finishes the output. Not with --redis.",
            show_default=False,
        ),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(
            help="Append all that this command and the processes it starts log to this file.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="With --redis: give the run to the workers there, print its job, and end. They lead it to its end.",
        ),
    ] = False,
    **options: Any,
) -> None:
    """Embed a dataset into a folder. Killed at any moment, the same command goes on.

    Exit status: 0; 3 where some rows, or halves of rows, failed; 1 where it could not go on; 130 after Ctrl-C.
    """
    from clip_queue.cli.up import stop_signals
    from clip_queue.shared.errors import BadInput, ClipError
    from clip_queue.stack.embedded import never

    with needs_extra():
        from clip_queue.bulk.run.display import progress_display
        from clip_queue.bulk.run.dry_run import dry_run as run_dry
        from clip_queue.bulk.run.embed import embed as run_embed
        from clip_queue.bulk.run.part import WHOLE, Part
        from clip_queue.cli.embed import print_dry_run, print_report
    settings = load_settings(redis_url=redis, models=[options["model"]] if options["model"] else None)
    given = settings.redis_url.get_secret_value() if "redis_url" in settings.model_fields_set else None
    what = source[0] if len(source) == 1 else source
    again, should_stop = resume_command(sys.argv[1:]), never
    try:
        if detach and not dry_run:
            if part is not None or log_file is not None:
                raise BadInput("--part and --log-file are for a command that does the work itself: not with --detach")
            from clip_queue.cli.detach import detach as run_detached

            run_detached(console, settings, what, output, redis_url=given, workers=workers, options=options)
            return
        if dry_run:
            asked = Part.parse(part) if part is not None else WHOLE
            print_dry_run(console, run_dry(what, output, settings=settings, **options), asked)
            return
        with stop_signals(kill_now) as should_stop, progress_display(console) as show:
            report = run_embed(
                what,
                output,
                workers=workers,
                redis_url=given,
                part=part,
                log_file=log_file,
                settings=settings,
                show=show,
                say=lambda line: print_line(console, f"[yellow]{escape(line)}[/]"),
                should_stop=should_stop,
                **options,
            )
    except (StackError, ClipError) as error:
        print_error(as_typed(str(error), models=options["model"], redis_url=redis))
        when = "To go on" if should_stop() else "To go on once that is mended"
        print_line(errors, f"{when}:\n  {escape(again)}")
        raise typer.Exit(130 if should_stop() else 1) from None
    print_report(console, report, again)
    raise typer.Exit(report.status)


@app.command()
def search(
    output: Annotated[str, typer.Argument(help="What `embed` wrote, or is writing; path or URL.")],
    text: Annotated[str | None, typer.Argument(help="What to look for; or --image.", show_default=False)] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Image to look for instead of a text; path or URL.", show_default=False),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Rows to show. [default: 12]", show_default=False)
    ] = None,
    among: Annotated[
        str | None,
        typer.Option(
            metavar="images|texts", help="What to compare with; unset: images, if there are any.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The output's model as NAME=SOURCE; unset: as its manifest has it.", show_default=False),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the images found to a contact sheet: .png, .jpg or .webp.", show_default=False
        ),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="Only rows that meet this condition on their metadata, as DuckDB reads it: \"caption LIKE '%cat%'\".",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON a row, with all its metadata.")] = False,
    vectors: Annotated[bool, typer.Option("--vectors", help="With --json: the rows' vectors as well.")] = False,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="Instead of a text: the rows that have another one this near, such as 0.97, group by group.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row, also where there is an index.")] = False,
) -> None:
    """Find the rows of an output that are nearest to a text or an image, or near duplicates.

    A table on a terminal; else rank, score, path and caption with tabs between.
    """
    from clip_queue.shared.errors import ClipError

    with needs_extra():
        from clip_queue.cli.search import search as run_search
    settings = load_settings()
    try:
        run_search(
            console,
            errors,
            settings,
            output,
            text=text,
            image=image,
            top=top,
            among=among,
            model=model,
            sheet=sheet,
            filter=filter,
            as_json=json,
            vectors=vectors,
            near_duplicates=near_duplicates,
            exact=exact,
        )
    except BrokenPipeError:  # of `| head`: typer ends without a message
        raise
    except (ClipError, OSError) as error:
        fail(str(error))


@app.command()
def index(
    output: Annotated[str, typer.Argument(help="What `embed` wrote, or is writing; path.")],
    among: Annotated[
        str | None,
        typer.Option(metavar="images|texts", help="What to index; unset: images, if any.", show_default=False),
    ] = None,
) -> None:
    """Build an index of a large output, beside it, by which `search` finds rows without comparing them all.

    After the output has grown, the same command adds what is new.
    """
    from clip_queue.shared.errors import ClipError

    with needs_extra():
        from clip_queue.cli.search import build_index
    try:
        build_index(errors, output, among)
    except (ClipError, OSError) as error:
        fail(str(error))


@contextmanager
def needs_extra() -> Iterator[None]:
    """Around imports of packages of an extra: ends the command if they are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed: pip install 'clip-queue[serve]'")


def kill_now() -> None:
    """End this process at once, at the second Ctrl-C. The kernel then ends its children."""
    os._exit(130)


def resume_command(arguments: list[str]) -> str:
    """The command with these arguments. The value of ``--redis``, which can contain a password, is hidden."""
    hidden = ["…" if before == "--redis" else a for before, a in zip(["", *arguments], arguments, strict=False)]
    return shlex.join(["clip-queue", *("--redis=…" if a.startswith("--redis=") else a for a in hidden)])
