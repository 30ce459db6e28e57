"""Which models a worker has begun to load. Requests wait for it: it may take a minute until the worker serves them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clip_queue.shared.store import Op
from clip_queue.shared.workers import WorkerInfo, workers

LOADING = 60  # seconds that a worker which has begun to load its models is believed to be loading them


def begin_loading(models: Iterable[str]) -> Op[None]:
    """Tell that a worker has begun to load models."""
    return Op([("SET", _key(model), "", "EX", LOADING) for model in models], lambda replies: None)


def end_loading(models: Iterable[str]) -> Op[None]:
    """Tell that it has loaded them. From now on its lease tells whether it lives."""
    return Op([("DEL", _key(model)) for model in models], lambda replies: None)


def workers_and_loading(models: Iterable[str]) -> Op[tuple[list[WorkerInfo], set[str]]]:
    """The live workers, and which of ``models`` a worker has begun to load."""
    live, names = workers(), list(models)

    def parse(replies: list[Any]) -> tuple[list[WorkerInfo], set[str]]:
        there = replies[len(live.commands) :]
        return live.parse(replies[: len(live.commands)]), {n for n, found in zip(names, there, strict=True) if found}

    return Op([*live.commands, *(("EXISTS", _key(model)) for model in names)], parse)


def _key(model: str) -> str:
    return f"cq:loading:{model}"
