"""What a revision of a finished output has to do: which shards are embedded again, and which are new."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from heapq import merge
from itertools import chain, pairwise
from tempfile import TemporaryDirectory

from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import Revision, RunPlan
from clip_queue.bulk.output.markers import Marker
from clip_queue.bulk.output.plan_file import PlanFile, write_plan
from clip_queue.bulk.output.swap import failures
from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.changes import Located
from clip_queue.sources.replan import Remade, Replan, order
from clip_queue.sources.rows_digest import RowsDigest
from clip_queue.sources.source import Shard, Source, SourceError

WATCHED = 1000  # rows or files between two looks whether to stop


def pieces(output: Output, plan: RunPlan) -> Iterator[Located]:
    """All pieces of a plan with their places, in the order of their files."""
    file, key = PlanFile(output), order(plan.source)

    def of(first: int, last: int) -> Iterator[Located]:
        for shard in range(first, last):
            for index, piece in enumerate(file.shard(shard).pieces):
                yield Located(piece, shard, index)

    updates = [of(first, last) for first, last in pairwise((0, *plan.added, plan.shards))]
    return updates[0] if len(updates) == 1 else merge(*updates, key=lambda located: key(located.piece.path))


class RevisionPlanner:
    """Plans the revision of a finished output; ``markers``: those of its shards."""

    def __init__(
        self,
        output: Output,
        plan: RunPlan,
        markers: list[Marker],
        settings: Settings,
        seen: Callable[[int, int], None],
    ) -> None:
        """``seen`` is called now and then, and may raise."""
        self._output, self._plan, self._settings, self._seen = output, plan, settings, seen
        self._markers = {marker["shard"]: marker for marker in markers}
        self._again: list[int] = []
        self._retried: list[int] = []
        self._rows: int | None = 0
        self._left = 0  # pieces

    def plan(self, home: Callable[[str], Output], *, update: bool, retry_failed: bool) -> RunPlan | None:
        """The plan of a revision, its file in the output that ``home`` gives for its id; None: there is nothing to do.

        Raises:
            SourceError: the source cannot be listed or read, or nothing is left of it.
            OutputError: the plan cannot be written.
        """
        began, id = time.time(), secrets.token_hex(8)
        failed = {shard for shard, marker in self._markers.items() if retry_failed and failures(marker)}
        before = self._plan
        file = PlanFile(self._output)
        old = map(file.shard, range(before.shards))
        with TemporaryDirectory(prefix="clip-queue-") as folder:
            if not update:
                if not failed:
                    return None
                count = self._write(home(id), self._all(map(Remade, old), before.source, failed))
                plan = replace(before, id=id, shards=count)
                what = "nothing of the source is looked at anew"
            else:
                counted = before.rows is not None
                located, size = self._watched(pieces(self._output, before)), before.options.shard_size
                replan = Replan(before.source, located, before.planned, size, self._settings, counted=counted)
                new = self._spooled(Output(folder), replan.new_shards())
                if replan.is_same and not failed:
                    return None
                all_shards = chain(self._all(replan.old_shards(old), replan.source, failed), self._added(new))
                count = self._write(home(id), all_shards)
                if not self._left:
                    raise SourceError("nothing is left of the source: the output stays as it is")
                grown = count > before.shards
                plan = replace(
                    before,
                    id=id,
                    source=replan.source,
                    shards=count,
                    planned=began,
                    added=(*before.added, before.shards) if grown else before.added,
                    padded=before.padded or (before.shards if grown else 0),
                )
                what = str(replan.changes) or "no file has changed"
        words = self._words(what, count)
        revision = Revision(tuple(self._again), tuple(self._retried), update, retry_failed, words)
        return replace(plan, rows=self._rows, revision=revision)

    def _watched(self, planned: Iterable[Located]) -> Iterator[Located]:
        for number, located in enumerate(planned):
            if number % WATCHED == 0:
                self._seen(0, 0)
            yield located

    def _words(self, what: str, count: int) -> str:
        added = count - self._plan.shards
        again = len(self._again) - added - len(self._retried)
        parts = [
            f"{again:,} of {self._plan.shards:,} shards are embedded again" if again else "",
            f"{len(self._retried):,} with rows that failed are tried again" if self._retried else "",
            f"{added:,} {'is' if added == 1 else 'are'} new" if added else "",
        ]
        return f"{what}: {', '.join(part for part in parts if part) or 'no shard has to be embedded again'}"

    def _all(self, old: Iterable[Remade], source: Source, failed: set[int]) -> Iterator[Shard]:
        """The old shards as they are to be; which of them are to be done is noted."""
        for number, (shard, again, same_rows) in enumerate(old):
            if again and not (same_rows and self._reads_as_before(number, shard, source)):
                self._do(number, shard)
            elif number in failed:
                self._do(number, shard)
                self._retried.append(number)
            self._left += len(shard.pieces)
            yield shard

    def _added(self, new: Iterator[Shard]) -> Iterator[Shard]:
        for number, shard in enumerate(new, self._plan.shards):
            self._do(number, shard)
            self._left += len(shard.pieces)
            yield shard

    def _do(self, number: int, shard: Shard) -> None:
        self._again.append(number)
        self._rows = None if self._rows is None or shard.rows is None else self._rows + shard.rows

    def _reads_as_before(self, number: int, shard: Shard, source: Source) -> bool:
        """Whether the rows of a shard whose tables were written anew are those that were embedded."""
        before = self._markers.get(number, {}).get("digest")
        if before is None:  # an older release has embedded them
            return False
        digest = RowsDigest(source)
        try:
            for count, _ in enumerate(digest.of(registry.read(source, shard.pieces, self._settings))):
                if count % WATCHED == 0:
                    self._seen(number, 0)
        except ClipError:  # it is read again by a worker, which says what is wrong
            return False
        return digest.hex() == str(before)

    def _spooled(self, spool: Output, shards: Iterator[Shard]) -> Iterator[Shard]:
        """The shards once more, after all of them were written down."""
        first = next(shards, None)
        if first is None:
            return iter(())
        count = self._write(spool, chain([first], shards))
        return map(PlanFile(spool).shard, range(count))

    def _write(self, output: Output, shards: Iterator[Shard]) -> int:
        try:
            return write_plan(output, shards, self._seen)[0]
        except OSError as error:
            raise OutputError.because(error) from error
