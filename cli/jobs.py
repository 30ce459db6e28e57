"""``clip-queue jobs``: the jobs of a key, from ``GET /jobs``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clip_queue.cli.service import Service
from clip_queue.cli.terminal import print_line, printable

PAGE = 100  # jobs of an answer, the most that the service gives


def jobs(service: Service, state: str | None, limit: int) -> Iterator[dict[str, Any]]:
    """Documents of the newest ``limit`` jobs, newest first, without results. Raises :class:`ServiceError`."""
    asked: dict[str, Any] = {"state": state} if state else {}
    while limit > 0:
        page = service.document(service.get("/jobs", {**asked, "limit": min(limit, PAGE)}))
        if not isinstance(page.get("jobs"), list):
            raise service.stranger
        yield from page["jobs"]
        limit -= len(page["jobs"])
        if not page.get("cursor"):
            return
        asked["cursor"] = page["cursor"]


def show(console: Console, service: Service, *, job: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """Print the jobs as a table, or as a line of JSON each; of a single ``job`` its whole document as JSON."""
    if job is not None:
        found = service.document(service.get(f"/jobs/{quote(job, safe='')}"))
        print(json.dumps(found, indent=None if as_json else 2, ensure_ascii=False))
        return
    if as_json:
        for each in jobs(service, state, limit):
            print(json.dumps(each))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("job", "task", "model", "state", "priority", "items", "age", "why"):
        table.add_column(name, justify="right" if name in ("items", "age") else "left", overflow="fold")
    for each in jobs(service, state, limit):
        table.add_row(*map(escape, _row(each)))
    if table.row_count:
        console.print(table)
    else:
        print_line(console, "no jobs" + (f" that are {escape(state)}" if state else ""))


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    items = job["items"]
    done = f"{items['done']:,} of {items['total']:,}" + (f", {items['failed']:,} failed" if items["failed"] else "")
    why = printable(job["error"]["message"]) if job["error"] else ""
    return (job["id"], job["task"], job["model"], job["state"], job["priority"], done, _age(job["created"]), why)


def _age(moment: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
