"""A source of text files and its output, for the tests of revisions, in one process."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.markers import complete_markers
from clip_queue.bulk.run.embed import ignore, run_plan
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.bulk.run.revision import revise, settle
from clip_queue.shared.settings import Settings
from tests.unit.bulk.in_process import INFO, Worker

SETTINGS = Settings(models=["emoji-mini"])


class Case:
    """A source of text files and an output of it, three rows a shard."""

    def __init__(self, folder: Path, worker: Worker, files: dict[str, str], **options: Any) -> None:
        self.output = Output(options.pop("output", str(folder / "out")))
        self.folder, self._worker = folder / "in", worker
        self.options = {"shard_size": 3, "batch_size": 2, **options}
        self.work = self.run
        self.folder.mkdir()
        for name, text in files.items():
            self.write(name, text)
        planner = Planner(self.output, EmbedRequest.of(self.url, self.options), SETTINGS, ignore, lambda: False)  # type: ignore[arg-type]
        plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=True)
        now = time.time()
        for path in self.folder.iterdir():
            os.utime(path, (now - 2000, now - 2000))
        plan = replace(plan, planned=now - 1000)
        manifest.save(self.output, plan)
        assert self.run(self.output, plan).finished

    @property
    def url(self) -> str:
        return str(self.folder)

    @property
    def plan(self) -> manifest.RunPlan:
        found = manifest.load(self.output)
        assert found is not None
        return found.plan

    def run(self, output: Output, plan: manifest.RunPlan) -> Report:
        return run_plan(
            SETTINGS,
            output,
            plan,
            self._worker.store,
            retry=RetryPolicy(),
            show=ignore,
            should_stop=lambda: False,
        )

    def write(self, name: str, text: str) -> None:
        time.sleep(0.01)  # the system's clock of files is behind by as much
        (self.folder / name).write_text(text)

    def revise(self, **given: Any) -> Report:
        begun = manifest.load(self.output)
        assert begun is not None
        begun = settle(self.output, begun)
        markers = list(complete_markers(self.output, begun.plan))
        before = len(self._worker.sent)
        self._worker.beat()
        report = revise(
            self.output,
            begun.plan,
            markers,
            given,  # type: ignore[arg-type]
            SETTINGS,
            say=ignore,
            should_stop=lambda: False,
            work=self.work,
        )
        self.sent = len(self._worker.sent) - before
        return report

    def update(self) -> Report:
        return self.revise(update=True)

    def rows(self) -> dict[int, list[str]]:
        """The texts of each shard."""
        folder = Path(self.output.url)
        kind = "table" if self.plan.options.layout == "table" else "metadata"
        import pyarrow.parquet as pq

        return {
            int(path.stem.rpartition("_")[2]): pq.read_table(path)["caption"].to_pylist()
            for path in sorted((folder / kind).glob("*.parquet"))
        }

    def files(self) -> dict[str, tuple[bytes, int]]:
        """The files of shards: their bytes, and when they were written."""
        folder = Path(self.output.url)
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for kind in ("text_emb", "metadata", "errors", "shards", "table")
            for path in (folder / kind).glob("*")
        }


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


FILES = {"a.txt": lines("a1", "a2", "a3", "a4"), "c.txt": lines("c1", "c2"), "d.txt": lines("d1", "d2")}
