"""``clip-queue embed --detach``: what it submits, what it says, and when it refuses. The store is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
from typer.testing import CliRunner

from clip_queue.cli import detach
from clip_queue.cli.main import app
from clip_queue.shared import ops, runs
from clip_queue.shared.job import Kind, State
from clip_queue.shared.owners import owner_of
from clip_queue.shared.store import Store

invoke = CliRunner().invoke
REDIS = "redis://:hunter2@127.0.0.1:1/0"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    server = fakeredis.FakeServer()
    monkeypatch.setattr(detach.Store, "connect", lambda _: Store(fakeredis.FakeRedis(server=server)))
    it = Store(fakeredis.FakeRedis(server=server))
    yield it
    it.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("a\nb\n")
    return tmp_path / "in.txt"


def test_it_submits_the_run_says_how_to_watch_and_stop_it_and_ends(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_QUEUE_API_KEYS", "k3y")
    monkeypatch.chdir(tmp_path)
    result = invoke(app, ["embed", "in.txt", "out", "--detach", "--redis", REDIS, "--dtype", "float32", "--no-images"])
    assert result.exit_code == 0, result.output
    job_id = store.execute(runs.peek_run(["emoji-mini"]))
    assert job_id
    job = store.execute(ops.view(job_id)).job
    assert (job.kind, job.state, job.owner) == (Kind.EMBED_DATASET, State.QUEUED, owner_of("k3y"))
    (claimed,) = store.execute(ops.claim([job_id], "w", 3))
    assert claimed.inputs
    assert runs.RunRequest.from_inputs(claimed.inputs) == runs.RunRequest(
        [str(source)], str(tmp_path / "out"), {"dtype": "float32", "images": False}, confined=False
    )
    assert f"http://…/jobs/{job_id}" in result.output
    assert f"-X DELETE http://…/jobs/{job_id}" in result.output
    assert "hunter2" not in result.output
    assert not (tmp_path / "out").exists()


def test_the_same_again_says_that_it_is_under_way(store: Store, source: Path, tmp_path: Path) -> None:
    given = ["embed", str(source), str(tmp_path / "out"), "--detach", "--redis", REDIS]
    assert invoke(app, given).exit_code == 0
    again = invoke(app, given)
    assert again.exit_code == 1
    assert str(store.execute(runs.peek_run(["emoji-mini"]))) in again.output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "name its Redis with --redis"),
        (["--redis", REDIS, "--workers", "2"], "leave one of them out"),
        (["--redis", REDIS, "--dtype", "int8"], "float16 or float32"),
        (["--redis", REDIS, "--format", "tarball"], "is not known"),
    ],
)
def test_what_cannot_be_given_away_is_refused(
    store: Store, source: Path, tmp_path: Path, more: list[str], says: str
) -> None:
    result = invoke(app, ["embed", str(source), str(tmp_path / "out"), "--detach", *more])
    assert result.exit_code == 1
    assert says in result.output
    assert store.execute(runs.peek_run(["emoji-mini"])) is None


def test_a_dry_run_stays_one(store: Store, source: Path, tmp_path: Path) -> None:
    given = ["embed", str(source), str(tmp_path / "out"), "--detach", "--dry-run", "--redis", REDIS]
    result = invoke(app, given)
    assert result.exit_code == 0
    assert "nothing was written (--dry-run)" in result.output
    assert store.execute(runs.peek_run(["emoji-mini"])) is None
