"""Told to stop, a command stops: also in the middle of a listing of a huge folder, a scan, a look at what is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue import embed
from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.embed import ignore
from clip_queue.bulk.run.planner import Planner
from clip_queue.bulk.run.request import EmbedRequest
from clip_queue.bulk.run.workers import NotStarted
from clip_queue.shared.settings import Settings
from clip_queue.sources.looking import go_on, heeding
from tests.s3_store import access, anew, flat
from tests.unit.bulk.in_process import INFO

SETTINGS = Settings(models=["m=none/none"])
AT = 30  # the question whether to stop that is answered with yes
MANY = 200  # entries, files or pages


class Asked:
    """Says yes once it has been asked so many times."""

    def __init__(self, at: int = AT) -> None:
        self.times, self._at = 0, at

    def __call__(self) -> bool:
        self.times += 1
        return self.times >= self._at


def names(folder: Path, suffix: str, count: int = MANY) -> Path:
    folder.mkdir(parents=True)
    for n in range(count):
        (folder / f"{n}{suffix}").write_bytes(b"x")
    return folder


def images(folder: Path) -> str:
    return str(names(folder, ".jpg"))


def folders(folder: Path) -> str:
    for n in range(MANY):
        names(folder / str(n), ".jpg", 1)
    return str(folder)


def lines(folder: Path) -> str:
    for n in range(MANY):
        folder.mkdir(exist_ok=True)
        (folder / f"{n}.txt").write_text("a\nb\n")
    return str(folder)


def parquet(folder: Path) -> str:
    folder.mkdir()
    for n in range(MANY):
        pq.write_table(pa.table({"caption": ["a", "b"]}), folder / f"{n}.parquet")
    return str(folder)


def one_csv(folder: Path) -> str:
    folder.mkdir()
    (folder / "a.csv").write_text("caption,url\n" + "a,b.jpg\n" * 5000)
    return str(folder / "a.csv")


def pattern(folder: Path) -> str:
    return f"{lines(folder)}/*.txt"


@pytest.mark.parametrize("make", [images, folders, lines, parquet, one_csv, pattern])
def test_planning_is_told_in_the_middle_of_its_look_at_the_source(tmp_path: Path, make: Any) -> None:
    request = EmbedRequest.of(make(tmp_path / "in"), {"shard_size": 1_000_000})
    asked = Asked()
    planner = Planner(Output(str(tmp_path / "out")), request, SETTINGS, ignore, asked)
    with pytest.raises(NotStarted, match="stopped while it was planning"):
        planner.write_shards()
    assert asked.times == AT, "it asks no further"
    assert not (tmp_path / "out" / "plan.parquet").exists()


@pytest.mark.parametrize("sampled", [{"sample": 1e-9}, {"limit": 10**6}])
def test_so_is_a_first_look(tmp_path: Path, sampled: dict[str, Any]) -> None:
    request = EmbedRequest.of(one_csv(tmp_path / "in"), {"shard_size": 10**6, **sampled})
    asked = Asked(at=6000)
    with pytest.raises(NotStarted):
        Planner(Output(str(tmp_path / "out")), request, SETTINGS, ignore, asked).write_shards()
    assert asked.times == 6000


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store whose folder has many pages."""
    with flat(MANY * 1000) as url:
        for name, value in access(url).items():
            monkeypatch.setenv(name, value)
        anew()
        yield "s3://bucket/flat"
    anew()


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_the_pages_of_a_store_s_folder_are_listed_no_further(tmp_path: Path, store: str, format: str) -> None:
    request = EmbedRequest.of(store, {"format": format})
    asked = Asked(at=5)
    with pytest.raises(NotStarted, match="stopped while it was planning"):
        Planner(Output(str(tmp_path / "out")), request, SETTINGS, ignore, asked).write_shards()
    assert asked.times == 5


def finished(tmp_path: Path) -> tuple[str, Output]:
    """A finished run of a folder of many files."""
    source, output = lines(tmp_path / "in"), Output(str(tmp_path / "out"))
    planner = Planner(output, EmbedRequest.of(source, {"shard_size": 2}), SETTINGS, ignore, lambda: False)
    plan = planner.plan(planner.write_shards(), INFO, "cpu", shared_workers=True)
    manifest.save(output, plan, {"rows": 0})
    for shard in range(plan.shards):
        output_file = tmp_path / "out" / output.names(shard, plan.shards)["shard"]
        output_file.parent.mkdir(exist_ok=True)
        output_file.write_text(
            f'{{"plan": "{plan.id}", "shard": {shard}, "rows": 2, "failed": 0, "errors": {{}}, "files": {{}}}}'
        )
    return source, output


@pytest.mark.parametrize("at", [2, 50, MANY + 50, 2 * MANY + 50, 3 * MANY])
def test_a_resume_is_told_while_it_looks_at_what_is_done_and_at_the_source(tmp_path: Path, at: int) -> None:
    source, output = finished(tmp_path)
    asked = Asked(at)
    with pytest.raises(NotStarted, match="stopped while it was looking at what is there"):
        embed(source, output.url, shard_size=2, settings=SETTINGS, should_stop=asked)
    assert asked.times == at
    assert embed(source, output.url, shard_size=2, settings=SETTINGS).rows == 2 * MANY


def test_a_look_in_a_look_heeds_the_nearer_and_nobody_after_it() -> None:
    heard: list[str] = []
    with heeding(lambda: heard.append("outer")):
        go_on()
        with pytest.raises(ValueError, match="inner"), heeding(lambda: fail("inner")):
            go_on()
        go_on()
    go_on()
    assert heard == ["outer", "outer"]


def fail(why: str) -> None:
    raise ValueError(why)
