"""The jobs API: the time that submitting and waiting adds to the synchronous route, one request at a time."""

from __future__ import annotations

import asyncio
import time

import orjson

from bench.common import ROUNDS, Row, served, show
from bench.load import Connection, Load

MODEL = "emoji-mini"
SECONDS = 4.0


def main() -> None:
    with served(MODEL) as stack:
        rounds = []
        for _ in range(ROUNDS):
            sync = asyncio.run(_each(stack.api_url, _ask))
            rounds.append((sync, asyncio.run(_each(stack.api_url, _submit_and_wait))))
    show(
        f"one text at a time, {MODEL}: POST /jobs and GET ?wait= until done, against POST /clip/embed_text",
        [
            Row("synchronous p50", [1000 * s.percentile(0.5) for s, _ in rounds], "ms"),
            Row("job p50", [1000 * j.percentile(0.5) for _, j in rounds], "ms"),
            Row("added p50", [1000 * (j.percentile(0.5) - s.percentile(0.5)) for s, j in rounds], "ms"),
            Row("added p99", [1000 * (j.percentile(0.99) - s.percentile(0.99)) for s, j in rounds], "ms"),
            Row("job ÷ synchronous, p50", [j.percentile(0.5) / s.percentile(0.5) for s, j in rounds], ""),
        ],
    )


async def _each(url: str, work: object) -> Load:
    load, connection = Load(), Connection(url)
    await connection.open()
    until, number = time.perf_counter() + SECONDS, 0
    while (began := time.perf_counter()) < until:
        number += 1
        await work(connection, f"thing {number} of {until}")  # type: ignore[operator]
        load.latencies.append(time.perf_counter() - began)
    connection.close()
    return load


async def _ask(connection: Connection, text: str) -> None:
    status, _ = await connection.post("/clip/embed_text", orjson.dumps({"text": text}))
    assert status == 200


async def _submit_and_wait(connection: Connection, text: str) -> None:
    status, data = await connection.post("/jobs", orjson.dumps({"task": "embed_text", "text": text}))
    assert status == 202, data
    job = orjson.loads(data)
    while job["state"] in ("queued", "running"):
        _, data = await connection.get(f"/jobs/{job['id']}?wait=30")
        job = orjson.loads(data)
    assert job["state"] == "succeeded", job


if __name__ == "__main__":
    main()
