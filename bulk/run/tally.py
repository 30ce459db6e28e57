"""The tally of a run: what its complete shards come to, in the report, the progress and the summaries of markers.

Of a shard it holds eight bytes, and only where the plan does not say how many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.bulk.output.markers import Marker
from clip_queue.bulk.output.plan_file import PlanFile
from clip_queue.bulk.output.summaries import Summaries
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Report
from clip_queue.sources.looking import go_on


class Tally:
    """``waited``: the seconds that the shards of this command waited for each stage."""

    def __init__(self, output: Output, plan: RunPlan, shards: Sequence[int]) -> None:
        """``shards``: those that are to be done."""
        self.report = Report(output.url, plan.model.name, plan.model.fingerprint, len(shards), source=plan.source)
        whole = len(shards) == len(plan.numbers)
        self.progress = Progress(shards=len(shards), rows=plan.rows if whole else None)
        self.waited = {"reading": 0.0, "decoding": 0.0, "forward": 0.0}
        self._plan, self._shards = plan, shards
        self._summaries = Summaries(output, plan)
        self._weights: NDArray[np.int64] | None = None

    def weigh(self, file: PlanFile) -> None:
        """Look at the sizes of the shards, if only reading tells how many rows they have; and at their rows, if they
        are a part of a plan."""
        if self._plan.rows is None:
            self._weights = file.weights(self._plan.shards, go_on)
            self.progress.weight = int(self._weights[list(self._shards)].sum())
        elif self.progress.rows is None:
            self.progress.rows = sum(map(file.rows, self._shards))

    def found(self, marker: Marker) -> None:
        """A shard that was complete before this command began."""
        self._count(marker)
        self.progress.found(marker, self._weight(marker))

    def finished(self, marker: Marker) -> None:
        """A shard that this command has had done."""
        self._count(marker)
        self.progress.finished(marker, self._weight(marker))
        for stage in self.waited:
            self.waited[stage] += marker["seconds"].get(stage, 0.0)

    def _count(self, marker: Marker) -> None:
        self.report.count(marker)
        self._summaries.add(marker)

    def _weight(self, marker: Marker) -> int:
        return 0 if self._weights is None else int(self._weights[marker["shard"]])
