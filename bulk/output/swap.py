"""Swapping the shards of a revision into the output that it revises, file by file.

While a revision is under way it is an output of its own, in a folder in the output, and nothing else there has changed.
Once its manifest has a result its shards are moved, one after the other: first a shard's marker goes, then each file
takes the place of the older one, then the new marker is written. A shard that this is cut short in has no marker, so a
search passes it over; whoever comes next finds what is left to move.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from clip_queue.bulk.output import manifest, summaries
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import Manifest, Revision, RunPlan
from clip_queue.bulk.output.markers import Marker
from clip_queue.bulk.output.plan_file import has_plan, move_plan

PREFIX = ".revision-"


def home_of(output: Output, plan_id: str) -> Output:
    """Where the revision with this plan is made."""
    return Output(f"{output.url}/{PREFIX}{plan_id}")


def revisions(output: Output) -> Iterator[tuple[Output, Manifest]]:
    """The revisions that were begun and not swapped in. What is left of one that was never planned is removed."""
    for name in sorted(output.listed("")):
        if not name.startswith(PREFIX):
            continue
        home = Output(f"{output.url}/{name}")
        found = manifest.load(home)
        if found and found.plan.revision:
            yield home, found
        else:
            home.erase()


def swap(output: Output, home: Output, plan: RunPlan, plan_id: str) -> None:
    """Move the shards of a finished revision, and its plan, into the output whose plan has the id ``plan_id``. Its
    manifest is the caller's to write, and the rest of ``home`` to erase."""
    revision = plan.revision or Revision(())
    for shard in revision.shards:
        names = plan.names(shard)
        data = home.read(names["shard"])
        if data is None:  # it is there
            continue
        marker: Marker = orjson.loads(data)
        if shard in revision.retried and not _is_better(marker, output.read(names["shard"])):
            continue
        summaries.drop(output, plan, shard)
        output.remove(names["shard"])
        for name in (name for kind, name in names.items() if kind != "shard"):
            if name not in marker["files"]:
                output.remove(name)
            elif home.size(name) is not None:  # else it is there
                home.move(name, output)
        output.write(names["shard"], orjson.dumps({**marker, "plan": plan_id}))
        home.remove(names["shard"])
    if has_plan(home):
        move_plan(home, output)


def _is_better(marker: Marker, before: bytes | None) -> bool:
    """Whether fewer rows of a shard have failed than before; if not, a network that is down would cost good rows."""
    return before is None or failures(marker) < failures(orjson.loads(before))


def failures(marker: Marker) -> int:
    """The rows of a shard that have failed, or a half of them."""
    return int(marker["failed"] + marker.get("halves", 0))
