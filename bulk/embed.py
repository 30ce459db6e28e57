"""Embed a dataset: plan it, have its shards done, report. Killed at any moment, the same call goes on."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice

from pydantic import SecretStr

from api.keys import tenant
from bulk import files, reader
from bulk import plan as plans
from bulk.layout import Options, Output, Plan
from bulk.progress import Progress
from bulk.report import Report
from bulk.resume import check_model, check_same, markers
from bulk.runner import NoWorker, Runner
from bulk.shard_job import OutputError, explained
from bulk.source import Format, Source, SourceError
from shared.errors import ClipError, Unavailable
from shared.job import Kind
from shared.models import parse_model
from shared.settings import Settings, cores
from shared.store import Store
from shared.workers import ModelInfo, WorkerInfo, workers
from stack.embedded import EmbeddedStack
from stack.machine import visible_gpus

FIND_WORKERS = 60.0  # seconds to look for live workers on a Redis that was given
LOOK = 0.25

MOST_WORKERS = 4  # that are started on a CPU unless told otherwise

BATCH = {"cuda": 256}  # rows a forward pass, by kind of device
BATCH_ELSEWHERE = 8  # what an interactive request may have to wait for on a CPU


@dataclass(frozen=True)
class Asked:
    """What was asked for; None: as it is by default, or as the run that is resumed has it."""

    source: Source
    shard_size: int | None = None
    dtype: str | None = None
    normalize: bool | None = None
    batch_size: int | None = None


class NotBegun(ClipError):
    """It was told to stop before there was anything to give back."""

    code = "not_begun"


def nothing(*_: object) -> None:
    """Where nobody looks."""


def embed(
    source: str,
    output: str,
    *,
    format: str | None = None,
    model: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    images: bool | None = None,
    texts: bool | None = None,
    shard_size: int | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    normalize: bool | None = None,
    workers: int | None = None,
    redis_url: str | None = None,
    settings: Settings | None = None,
    show: Callable[[Progress], None] = nothing,
    say: Callable[[str], None] = nothing,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Embed every row of ``source`` into ``output``; called again after whatever stopped it, it goes on.

    Args:
        source: a folder of images, tars, parquet, ``.txt``, ``.csv`` or ``.jsonl``: a path, a glob, a brace expression,
            or a URL that fsspec opens.
        output: a folder, likewise (:mod:`bulk.layout`).
        format: one of :class:`bulk.source.Format`; None: from what is there.
        model: a served name, or ``NAME=SOURCE``; None: the first of the setting ``models``.
        image_column, text_column: of a table; None: from the columns' names.
        images, texts: whether to embed them; None: if there are any.
        shard_size: rows an output file, 10,000 by default. A tar is a shard of its own.
        batch_size: rows a forward pass; None: 256 on a GPU, 8 on a CPU.
        dtype: of the stored vectors, ``float16`` (the default) or ``float32``.
        normalize: scale vectors to length 1 (the default).
        workers: worker processes to start; None: one a GPU, or one a core and at most four. Not with ``redis_url``.
        redis_url: a Redis whose workers do the work; None: start what is needed here, and stop it afterwards.
        show: gets the :class:`~bulk.progress.Progress` several times a second.
        say: gets lines about what happens.
        told_to_stop: asked several times a second; True gives back what runs and ends the call.

    Raises:
        ClipError: the run could not begin or go on; the message says why and what to do.
        StackError: what is needed here could not be started.
    """
    settings = settings or Settings()
    where = Output(output)
    spec = parse_model(model or settings.models[0])
    asked = Asked(
        as_asked(source, format, image_column, text_column, images, texts), shard_size, dtype, normalize, batch_size
    )
    with locked(where):
        loaded = where.load()
        if loaded:
            check_same(loaded[0], asked.source, options(asked, loaded[0].options), spec.name)
            if loaded[1] and (report := whole_report(where, loaded[0])).finished:
                where.tidy()
                return report
        draft = None if loaded else Draft.make(where, asked, say, told_to_stop)
        settings = settings.model_copy(update={"models": [model or settings.models[0]]})
        with served(settings, workers, redis_url, say, told_to_stop) as (settings, alive_check):
            alive = find_workers(settings, spec.name, told_to_stop)
            info = the_model(alive, spec.name)
            if loaded:
                plan = loaded[0]
                check_model(plan, info.fingerprint)
            else:
                assert draft is not None
                plan = draft.plan(info, alive[0].device)
                where.save(plan, versions())
            return run(settings, where, plan, show, told_to_stop, alive_check)


def run(
    settings: Settings,
    where: Output,
    plan: Plan,
    show: Callable[[Progress], None],
    told_to_stop: Callable[[], bool],
    check: Callable[[], None],
) -> Report:
    """Have a plan's shards done by the workers of ``settings``' Redis."""
    began = time.monotonic()
    keys = [key.get_secret_value() for key in settings.api_keys]
    owner = tenant(keys[0] if keys else None)

    def stop() -> bool:
        check()
        return told_to_stop()

    runner = Runner(settings, where, plan, owner=owner, told_to_stop=stop, show=show)
    error: ClipError | None = None
    try:
        outcome = runner.run()
    except ClipError as failure:
        error = failure
        raise
    finally:
        runner.close(error)
    report = whole_report(where, plan)
    report.resumed = runner.progress.resumed
    report.waited = runner.waited
    report.seconds = time.monotonic() - began
    report.lost, report.stopped = outcome.lost, outcome.stopped
    if report.finished:
        found = list(markers(where, plan))
        shards = [{k: m[k] for k in ("shard", "rows", "failed", "files", "seconds")} for m in found]
        where.save(plan, versions(), {**report.to_json(), "shards": shards})
        where.tidy()
    return report


def whole_report(where: Output, plan: Plan) -> Report:
    """A report of the shards that are whole."""
    report = Report(where.url, plan.model.name, plan.model.fingerprint, plan.shards)
    for marker in markers(where, plan):
        report.count(marker)
    return report


# What is asked


def as_asked(
    url: str,
    format: str | None,
    image_column: str | None,
    text_column: str | None,
    images: bool | None,
    texts: bool | None,
) -> Source:
    """A source as far as the caller knows it."""
    try:
        kind = Format(format) if format else reader.guess(url)
    except ValueError:
        raise SourceError(f"format {format!r} is not known: use one of {', '.join(Format)}") from None
    return Source(files.absolute(url), kind, image_column, text_column, images, texts)


def options(asked: Asked, default: Options) -> Options:
    """``default`` with what was asked for."""
    given = {name: getattr(asked, name) for name in ("shard_size", "dtype", "normalize", "batch_size")}
    return replace(default, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Draft:
    """A plan that waits for its model."""

    asked: Asked
    source: Source
    shards: int
    rows: int | None

    @classmethod
    def make(cls, where: Output, asked: Asked, say: Callable[[str], None], told_to_stop: Callable[[], bool]) -> Draft:
        """Look at the source and write the plan's pieces."""
        size = options(asked, Options()).shard_size
        said = time.monotonic()

        def seen(shards: int, rows: int) -> None:
            nonlocal said
            if told_to_stop():
                raise NotBegun("stopped while it was planning")
            if time.monotonic() - said > 2:
                said = time.monotonic()
                say(f"planning: {rows:,} rows in {shards:,} shards so far")

        source, shards = reader.plan(asked.source, size)
        try:
            count, rows = plans.write(where, shards, seen)
        except OSError as error:
            raise OutputError(explained(error)) from error
        return cls(asked, source, count, rows)

    def plan(self, info: ModelInfo, device: str) -> Plan:
        default = replace(Options(), batch_size=BATCH.get(device.partition(":")[0], BATCH_ELSEWHERE))
        return Plan(secrets.token_hex(8), self.source, info, options(self.asked, default), self.shards, self.rows)


@dataclass(frozen=True)
class Dry:
    """What a run would do."""

    source: Source
    shards: int
    rows: int | None
    first: list[str]  # names of the first rows' files, or containers


def dry_run(
    source: str,
    *,
    format: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    images: bool | None = None,
    texts: bool | None = None,
    shard_size: int | None = None,
) -> Dry:
    """Look at a source and write nothing. Arguments and errors as :func:`embed`."""
    asked = as_asked(source, format, image_column, text_column, images, texts)
    completed, shards = reader.plan(asked, shard_size or Options().shard_size)
    count, rows, known, first = 0, 0, True, list[str]()
    for shard in shards:
        first = first or [piece.path.decode("utf-8", "backslashreplace") for piece in islice(shard.pieces, 3)]
        count, rows, known = count + 1, rows + (shard.rows or 0), known and shard.rows is not None
    return Dry(completed, count, rows if known else None, first)


def versions() -> dict[str, str]:
    """What made the bytes."""
    names = ("clip-queue", "open-clip-torch", "torch", "pillow", "numpy", "pyarrow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # torch, where only the workers have it
            continue
    return found


# Who does it


@contextmanager
def locked(where: Output) -> Iterator[None]:
    """One command an output at a time, as far as this machine can tell."""
    try:
        with where.lock():
            yield
    except BlockingIOError:
        raise OutputError(f"another run is at work in {where.url}: wait for it, or stop it") from None
    except OSError as error:
        raise OutputError(explained(error)) from error


@contextmanager
def served(
    settings: Settings,
    number: int | None,
    redis_url: str | None,
    say: Callable[[str], None],
    told_to_stop: Callable[[], bool],
) -> Iterator[tuple[Settings, Callable[[], None]]]:
    """Settings whose Redis has workers, and a check that raises if they cannot come back."""
    if redis_url is not None:
        yield settings.model_copy(update={"redis_url": SecretStr(redis_url)}), nothing
        return
    stack = EmbeddedStack(settings, workers=number or default_workers(settings), api=False, say=say)
    try:
        stack.start(timeout=3600, given_up=told_to_stop)

        def check() -> None:
            if not stack.alive:
                raise NoWorker("the supervisor of the workers has failed")

        yield stack.settings, check
    finally:
        if told_to_stop():
            stack.hurry()  # what runs is given up anyway: nothing to wait for
        stack.stop()


def default_workers(settings: Settings) -> int | None:
    """Worker processes where nobody else uses the machine; None: one a GPU.

    On a CPU one a core: decoding and the forward pass then never wait for each other's threads, which is worth half as
    much again. No more than four, since each holds the model.
    """
    on_gpu = settings.device in ("auto", "cuda") and visible_gpus()
    return None if on_gpu else min(MOST_WORKERS, cores())


def find_workers(settings: Settings, model: str, told_to_stop: Callable[[], bool]) -> list[WorkerInfo]:
    """The live workers that can do shards of a model.

    Raises:
        NoWorker: there are none.
        NotBegun: told to stop while looking.
    """
    store = Store.connect(settings)
    until = time.monotonic() + FIND_WORKERS
    why = "no worker is alive there"
    try:
        while time.monotonic() < until:
            if told_to_stop():
                raise NotBegun("stopped while it was looking for workers")
            try:
                alive = store.run(workers())
                able = [w for w in alive if Kind.EMBED_SHARD in w.work and any(m.name == model for m in w.models)]
                if able:
                    return able
                served = sorted({m.name for w in alive for m in w.models})
                if served:
                    why = f"the workers there serve {', '.join(served)}" + (
                        "" if model not in served else ", without bulk"
                    )
            except Unavailable as error:
                why = error.message
            time.sleep(LOOK)
        raise NoWorker(f"nobody does bulk work for {model} on this Redis: {why}")
    finally:
        store.close()


def the_model(alive: list[WorkerInfo], name: str) -> ModelInfo:
    """The model as all workers have it. Raises :class:`NoWorker` where they differ."""
    found = {m.fingerprint: m for w in alive for m in w.models if m.name == name}
    if len(found) > 1:
        kinds = ", ".join(f"{m.fingerprint} ({m.precision})" for m in found.values())
        raise NoWorker(f"the workers' {name} differ ({kinds}): set one CLIP_QUEUE_PRECISION for all of them")
    return next(iter(found.values()))
