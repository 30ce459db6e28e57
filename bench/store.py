"""What a job takes of Redis's memory, unfinished and finished (on ``CLIP_QUEUE_REDIS_URL``, or the own Valkey)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import time
from collections.abc import Iterator

import orjson

from bench.common import VIT, Row, photo, show, worker_of
from bench.load import Connection
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.stack.embedded import EmbeddedStack

JOBS = 500
TEXT = "a photo of thing {} on a table"


def bodies(kind: str, jobs: int) -> Iterator[bytes]:
    """Jobs of a kind, all different."""
    for number in range(jobs):
        match kind:
            case "one text":
                job: dict[str, object] = {"task": "embed_text", "text": TEXT.format(number)}
            case "100 texts":
                texts = [TEXT.format(f"{number} {item}") for item in range(100)]
                job = {"task": "embed_text", "text": texts}
            case _:
                value = base64.b64encode(photo(number, (640, 480))).decode()
                job = {"task": "embed_image", "image": {"type": "base64", "value": value}}
        yield orjson.dumps(job)


KINDS = {"one text": JOBS, "100 texts": JOBS // 25, "one JPEG of 640 × 480": JOBS // 5}


def main() -> None:
    settings = Settings().model_copy(update={"models": [VIT], "max_queued_items": 100_000})
    given = settings.redis_url.get_secret_value() if "redis_url" in settings.model_fields_set else None
    rows = []
    with EmbeddedStack(settings, redis_url=given) as stack:
        worker = worker_of(stack).pid
        size = len(photo(0, (640, 480)))
        for kind, jobs in KINDS.items():
            asyncio.run(_jobs(stack, list(bodies(kind, 3)), worker=None))  # what is made once
            unfinished, finished = asyncio.run(_jobs(stack, list(bodies(kind, jobs)), worker))
            rows += [Row(f"{kind}, unfinished", [unfinished], "KiB"), Row(f"{kind}, finished", [finished], "KiB")]
    show(f"memory of Redis for each job, vectors of 512 numbers; a JPEG has about {size / 1024:.0f} KiB", rows)


def used(stack: EmbeddedStack) -> int:
    with contextlib.closing(Store.connect(stack.settings)) as store:
        return int(store.client.info("memory")["used_memory"])


async def _jobs(stack: EmbeddedStack, bodies: list[bytes], worker: int | None) -> tuple[float, float]:
    """KiB for each job that waits, while the worker is stopped, and for each that has ended."""
    if worker:
        os.kill(worker, signal.SIGSTOP)
    try:
        before = used(stack)
        connection = Connection(stack.api_url)
        await connection.open()
        ids = []
        for body in bodies:
            status, data = await connection.post("/jobs", body)
            assert status == 202, data
            ids.append(orjson.loads(data)["id"])
        waiting = used(stack)
    finally:
        if worker:
            os.kill(worker, signal.SIGCONT)
    for job in ids:
        until = time.monotonic() + 120
        while (document := orjson.loads((await connection.get(f"/jobs/{job}?wait=30"))[1]))["state"] != "succeeded":
            assert document["state"] in ("queued", "running"), document
            assert time.monotonic() < until, document
    ended = used(stack)
    connection.close()
    return (waiting - before) / len(ids) / 1024, (ended - before) / len(ids) / 1024


if __name__ == "__main__":
    main()
