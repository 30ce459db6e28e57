"""``clip-queue embed`` from a store into a store: S3 as its clients speak it, with a real Valkey and real workers.

The store is moto's server, a process of its own, at the end of a line that a test can cut.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from clip_queue.bulk.run.embed import embed as embed_here
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.retry import RetryPolicy
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.sources import storage as files
from clip_queue.sources.formats import folder, parquet
from clip_queue.sources.formats import image_files as pictures
from clip_queue.sources.source import Piece, Source, SourceAway, SourceError
from tests import datasets
from tests.bulk_command import Embed
from tests.faults import Faults
from tests.harness import Service, Stack, stack, wait_for
from tests.images import noise_image
from tests.outputs import checksums, strays, table
from tests.s3_store import S3, SECRET, Line, access, anew

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUCKET = "data"
COUNT = 36  # rows that are good
SHARD = 5  # rows; a tar has as many, and is one
SHARDS = 8  # with the four rows that are bad
KINDS = {
    "folder": "images",
    "tars": "tars/{00000..00007}.tar",
    "parquet": "table.parquet",
}
ENDED = 240.0  # seconds that a command may take on a loaded machine


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    it = S3(tmp_path_factory.mktemp("store")).start()
    it.client.create_bucket(Bucket=BUCKET)
    yield it
    it.kill()


@pytest.fixture(scope="module")
def line(store: S3) -> Iterator[Line]:
    """The way to the store that this process and all that it starts find in their environment."""
    with Line(store.port) as it, pytest.MonkeyPatch.context() as environment:
        # A client tries five times, which takes seven seconds a request where nobody answers.
        for name, value in {**access(it.url), "AWS_MAX_ATTEMPTS": "1", "OMP_NUM_THREADS": "1"}.items():
            environment.setenv(name, value)
        anew()
        yield it
    anew()


@pytest.fixture(scope="module")
def workers(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("remote stack")) as it:
        it.ready(it.worker(), timeout=ENDED)
        yield it


@pytest.fixture(scope="module")
def source(store: S3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every kind of source, some of their rows bad, on this machine and in the store."""
    root = tmp_path_factory.mktemp("remote source")
    datasets.folder(root / "images", COUNT)
    datasets.tars(root / "tars", COUNT)
    datasets.parquet(root / "table.parquet", COUNT)
    tar = root / "tars" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size * 2 // 3])
    store.upload(root, BUCKET, "in")
    return root


def command(folder: Path, source: str, output: str, *options: object, name: str = "embed", **env: str) -> Embed:
    (temporary := folder / f"tmp {name}").mkdir()
    env = {"TMPDIR": str(temporary), **env}
    run = Embed(folder, source, Path(output), *options, name=name, env=env)
    run.command[run.command.index(str(Path(output)))] = output  # a URL is no path
    return run


def s3(path: str) -> str:
    return f"s3://{BUCKET}/{path}"


# What it makes


@pytest.fixture(scope="module")
def runs(workers: Stack, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Embed]]:
    """A command for each kind of source, from the store into the store, side by side; one starts its own worker."""
    folder = tmp_path_factory.mktemp("remote runs")
    redis = ("--redis", workers.valkey.url)
    by = {"folder": redis, "tars": redis, "parquet": ("--workers", 1)}
    commands = {
        kind: command(folder, s3(f"in/{path}"), s3(f"out/{kind}"), "--shard-size", SHARD, *by[kind], name=kind)
        for kind, path in KINDS.items()
    }
    for each in commands.values():
        each.start()
    yield commands
    for each in commands.values():
        each.kill()


@pytest.fixture(scope="module")
def here(
    runs: dict[str, Embed], workers: Stack, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """The checksums of what the same options make of the same files on this machine."""
    output = tmp_path_factory.mktemp("here")
    for kind, path in KINDS.items():
        url, into = f"{source}/{path}", str(output / kind)
        embed_here(url, into, shard_size=SHARD, redis_url=workers.valkey.url, settings=Settings(precision="fp32"))
    return {kind: checksums(output / kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "rows", "failed"),
    [("folder", COUNT, 4), ("tars", 34, 5), ("parquet", COUNT, 4)],  # a tar that breaks is one row that fails
)
def test_a_store_s_source_is_embedded_into_the_store_to_the_bytes_that_local_files_make(
    store: S3,
    runs: dict[str, Embed],
    here: dict[str, dict[str, str]],
    tmp_path: Path,
    kind: str,
    rows: int,
    failed: int,
) -> None:
    assert runs[kind].ended(ENDED) == 3, runs[kind].said
    assert f"✓ {rows} rows embedded, {failed} failed, in s3://{BUCKET}/out/{kind}" in runs[kind].said
    output = store.download(BUCKET, f"out/{kind}", tmp_path)
    assert (len(table(output)), len(table(output, "errors"))) == (rows, failed)
    assert checksums(output) == here[kind]
    assert strays(output) == []
    assert list(Path(runs[kind].env["TMPDIR"]).iterdir()) == []


def test_killed_it_goes_on_and_does_no_whole_shard_again(
    store: S3, workers: Stack, source: Path, here: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    options = ("--shard-size", SHARD, "--redis", workers.valkey.url)
    run = command(tmp_path, s3("in/images"), s3("out/killed"), *options).start()
    wait_for(lambda: store.keys(BUCKET, "out/killed/shards/") or not run.alive, ENDED, run.said)
    run.kill()
    whole = {key: store.get(BUCKET, key) for key in store.keys(BUCKET, "out/killed/shards/")}
    assert 0 < len(whole) < SHARDS, run.said
    run.start()
    assert run.ended(ENDED) == 3, run.said
    assert " of them were there before" in run.said
    assert "could not be done" not in run.said, "it sees what workers write, whatever its client listed before"
    assert {key: store.get(BUCKET, key) for key in whole} == whole, "a marker tells how long its shard took"
    assert checksums(store.download(BUCKET, "out/killed", tmp_path / "out")) == here["folder"]


@dataclass
class Machine:
    """A worker with folders of its own, which no other process looks into."""

    worker: Service
    faults: Faults
    temporary: Path

    @classmethod
    def start(cls, it: Stack, name: str) -> Machine:
        (temporary := it.folder / name / "tmp").mkdir(parents=True)
        faults = Faults(it.folder / name / "faults")
        env = {"TMPDIR": str(temporary), "HOME": str(temporary.parent)}
        return cls(it.worker("tests.faulty", env=env, test_faults=faults.folder), faults, temporary)


def test_machines_that_share_a_store_and_no_file_system_do_one_run_and_one_of_them_is_killed(
    store: S3,
    line: Line,
    source: Path,
    tmp_path: Path,
) -> None:
    options, settings = ("--shard-size", SHARD), Settings(precision="fp32")
    with stack(tmp_path, decode_timeout=120) as it:  # no row fails for a machine that is busy
        first, second = machines = [Machine.start(it, name) for name in ("first", "second")]
        it.ready(*(machine.worker for machine in machines), timeout=ENDED)
        for machine in machines:
            machine.faults.delay(1)
        idle = [len(machine.faults.passes()) for machine in machines]
        run = command(tmp_path, s3("in/images"), s3("out/two"), *options, "--redis", it.valkey.url).start()
        try:

            def both() -> bool:
                """Both have had a part in it, the first is in the middle of a pass, and a shard is complete."""
                passes = [len(machine.faults.passes()) for machine in machines]
                return all(map(int.__lt__, idle, passes)) and bool(store.keys(BUCKET, "out/two/shards/"))

            wait_for(lambda: both() or not run.alive, ENDED, run.said)
            before = len(first.faults.passes())
            wait_for(lambda: len(first.faults.passes()) > before or not run.alive, ENDED, run.said)
            assert run.alive, run.said
            first.worker.kill()
            done = len(store.keys(BUCKET, "out/two/shards/"))
            assert done < SHARDS
            second.faults.clear()
            assert run.ended(ENDED) == 3, run.said
            jobs = Store.connect(settings.model_copy(update={"redis_url": SecretStr(it.valkey.url)}))
            kept = [jobs.client.hmget(key, "kind", "attempts") for key in jobs.client.scan_iter("cq:job:*", count=1000)]
            jobs.close()
        finally:
            run.kill()
        assert max(int(attempts) for kind, attempts in kept if kind == b"embed_shard") >= 2, "it held a shard"
        undisturbed = tmp_path / "undisturbed"
        url = f"{source}/{KINDS['folder']}"
        assert embed_here(url, undisturbed, shard_size=SHARD, redis_url=it.valkey.url, settings=settings).status == 3
    output = store.download(BUCKET, "out/two", tmp_path / "out")
    assert checksums(output) == checksums(undisturbed)
    assert strays(output) == []
    assert len(list((output / "shards").iterdir())) == SHARDS
    assert list(second.temporary.rglob("clip-queue-*")) == []


def test_an_output_in_a_store_can_be_searched(runs: dict[str, Embed], tmp_path: Path) -> None:
    assert runs["folder"].ended(ENDED) == 3, runs["folder"].said
    asked = [*runs["folder"].command[:3], "search", s3("out/folder"), "a rocket", "--among", "texts", "--top", "2"]
    search = Service("search", asked, tmp_path, {"CLIP_QUEUE_PRECISION": "fp32"}).start()
    wait_for(lambda: not search.alive, ENDED, "the search")
    said = search.log.read_text()
    found = [line.split("\t") for line in said.splitlines() if line[:1].isdigit()]
    assert [(rank, caption.partition(" ")[0]) for rank, _, _, caption in found] == [("1", "rocket"), ("2", "rocket")], (
        said
    )
    assert all(path.endswith(" é.jpg") for _, _, path, _ in found)


def test_an_update_of_an_output_in_the_store_that_is_killed_goes_on(
    store: S3, workers: Stack, source: Path, tmp_path: Path
) -> None:
    redis = ("--shard-size", SHARD, "--redis", workers.valkey.url)
    store.upload(source / "images", BUCKET, "growing")
    run = command(tmp_path, s3("growing"), s3("out/updated"), *redis, name="first").start()
    assert run.ended(ENDED) == 3, run.said
    first = {key: store.get(BUCKET, key) for key in store.keys(BUCKET, "out/updated/")}
    for n in range(12):
        store.client.put_object(Bucket=BUCKET, Key=f"growing/n{n:02}.jpg", Body=noise_image(n + 500, format="JPEG"))
    store.client.delete_object(Bucket=BUCKET, Key="growing/003 é.jpg")
    update = command(tmp_path, s3("growing"), s3("out/updated"), *redis, "--update", name="update").start()

    def begun() -> list[str]:
        return [key for key in store.keys(BUCKET, "out/updated/.revision-") if "/shards/" in key]

    wait_for(lambda: begun() or not update.alive, ENDED, f"a first shard:\n{update.said}")
    update.kill()
    now = {key: store.get(BUCKET, key) for key in store.keys(BUCKET, "out/updated/") if "/.revision-" not in key}
    assert now == first or not begun(), "nothing has changed before all is there"
    assert update.start().ended(ENDED) == 3, update.said
    output = store.download(BUCKET, "out/updated", tmp_path / "updated")
    assert len(table(output)) == COUNT + 12 - 1
    kept = [key for key in first if "img_emb" in key and not key.endswith("_0.npy")]
    assert len(kept) == SHARDS - 1
    assert {key: store.get(BUCKET, key) for key in kept} == {key: first[key] for key in kept}
    assert strays(output) == []


# What cannot be


@pytest.fixture(scope="module")
def refused(line: Line, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Embed]]:
    """Commands that end before any worker is asked, side by side."""
    folder = tmp_path_factory.mktemp("refused")
    guarded = S3(folder, "guarded", guarded=True).start()
    here = str(source / "images")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    given: dict[str, tuple[str, str, dict[str, str]]] = {
        "no such bucket": ("s3://no-such-bucket/in", s3("out/refused"), {}),
        "no bucket to write to": (here, "s3://no-such-bucket/out", {}),
        "wrong credentials": (s3("in/images"), s3("out/refused"), {"AWS_ENDPOINT_URL": guarded.url}),
        "wrong credentials to write": (here, s3("out/refused"), {"AWS_ENDPOINT_URL": guarded.url}),
        "no credentials": (s3("in/images"), s3("out/refused"), nobody),
    }
    commands = {name: command(folder, of, to, name=name, **env) for name, (of, to, env) in given.items()}
    for each in commands.values():
        each.start()
    yield commands
    for each in [*commands.values(), guarded]:
        each.kill()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no such bucket", "no-such-bucket/in does not exist; looked for a folder of images"),
        (
            "no bucket to write to",
            "the output cannot be written: s3://no-such-bucket/out: The specified bucket does not exist: make it "
            "first, or choose another output",
        ),
        ("wrong credentials", "data/in/images cannot be looked at: Forbidden: check the credentials for the store"),
        ("wrong credentials to write", "the output cannot be written: Forbidden: check the credentials for the store"),
        (
            "no credentials",
            "cannot be looked at: NoCredentialsError: check that the store can be reached, and the",
        ),
    ],
)
def test_what_a_store_refuses_ends_the_command_with_1_the_reason_and_what_to_do(
    store: S3, refused: dict[str, Embed], name: str, why: str
) -> None:
    run = refused[name]
    assert run.ended(ENDED) == 1, run.said
    first, then, resume = run.said.splitlines()
    assert first.startswith("clip-queue: ")
    assert why in first
    assert then == "To go on once that is mended:"
    assert resume.startswith("  clip-queue embed ")
    assert SECRET not in run.said
    assert [about["Name"] for about in store.client.list_buckets()["Buckets"]] == [BUCKET], "no bucket is made"


def test_a_store_that_goes_away_costs_no_row(
    store: S3, line: Line, workers: Stack, here: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """A command whose output is there ends, and says how to go on; one whose source alone is there waits for it."""
    options = ("--shard-size", SHARD, "--redis", workers.valkey.url)
    there = command(tmp_path, s3("in/images"), s3("out/forsaken"), *options, name="there").start()
    below = command(tmp_path, s3("in/images"), str(tmp_path / "below"), *options, name="below").start()
    try:
        begun = {there: lambda: store.keys(BUCKET, "out/forsaken/shards/"), below: below.complete}

        def both_stand() -> bool:
            for run in [run for run, has_begun in begun.items() if has_begun() or not run.alive]:
                os.kill(run.pid, signal.SIGSTOP)  # it submits no more
                del begun[run]
            return not begun

        wait_for(both_stand, ENDED, "both to begin")
        line.cut()
        for run in (there, below):
            os.kill(run.pid, signal.SIGCONT)
        assert there.ended(60) == 1, there.said
        waits = "the source does not answer, waiting for it"
        wait_for(lambda: waits in below.said or not below.alive, 60, "the other to notice")
        assert below.alive, below.said
        line.mend()
        assert below.ended(ENDED) == 3, below.said
        assert "could not be done" not in below.said
    finally:
        line.mend()
        for run in (there, below):
            run.kill()
    assert "clip-queue: the output cannot be written: " in there.said
    assert "check that the store can be reached, and the credentials for it" in there.said
    assert "To go on once that is mended:\n  clip-queue embed s3://" in there.said
    assert there.start().ended(ENDED) == 3, there.said
    assert " of them were there before" in there.said
    assert SECRET not in there.said + below.said
    assert checksums(below.output) == here["folder"]
    assert checksums(store.download(BUCKET, "out/forsaken", tmp_path / "there")) == here["folder"]


def test_a_source_that_does_not_come_back_is_given_up(
    line: Line, workers: Stack, here: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    retry = RetryPolicy(source_away=2.0, source_pause=0.5)
    away: list[bool] = []

    def show(progress: Progress) -> None:
        if not away:
            line.cut()
        away.append(progress.away)

    about = {"shard_size": SHARD, "redis_url": workers.valkey.url, "settings": Settings(precision="fp32")}
    try:
        with pytest.raises(SourceAway, match=r"the source has been away for .* cannot be .*: check that the store"):
            embed_here(s3("in/images"), str(tmp_path / "out"), show=show, retry=retry, **about)  # type: ignore[arg-type]
    finally:
        line.mend()
    assert away[-1]
    assert embed_here(s3("in/images"), str(tmp_path / "out"), **about).status == 3  # type: ignore[arg-type]
    assert checksums(tmp_path / "out") == here["folder"]


def test_planning_takes_no_store_that_is_away_for_files_that_are_broken(
    store: S3, line: Line, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be rows that fail, and stay so."""
    for key in ("tree/a.jpg", "tree/b/c.jpg"):
        store.client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    walk = pictures.walk(s3("tree"), "s3", b"data/tree")
    table = Source(s3("in/table.parquet"), "parquet")
    done, shards = parquet.plan_shards(table, 10, Settings())
    pieces = next(shards).pieces
    root = parquet.root
    monkeypatch.setattr(parquet, "root", lambda url: (root(url), line.cut())[0])  # just before it reads footers
    away = "check that the store can be reached"
    assert next(walk).path == b"data/tree/a.jpg"
    try:
        with pytest.raises(SourceError, match=f"data/in/table.parquet cannot be read: .*{away}"):
            parquet.plan_shards(table, 10, Settings())
        with pytest.raises(files.StoreAway, match=away):
            next(parquet.read(done, pieces, Settings()))
        with pytest.raises(SourceError, match=f"data/tree/b cannot be listed: .*{away}"):
            next(walk)
        captioned = Piece("data/in/images/000 é.jpg".encode(), note=".txt")
        with pytest.raises(SourceError, match=f"000 é.txt cannot be read: .*{away}"):
            next(folder.read(Source(s3("in/images"), "folder"), [captioned], Settings()))
    finally:
        line.mend()


def test_no_secret_is_told(store: S3, workers: Stack, runs: dict[str, Embed]) -> None:
    for run in runs.values():
        run.ended(ENDED)
        assert SECRET not in run.said
    for service in workers.services:
        assert SECRET not in service.log.read_text(errors="replace")
    for key in store.keys(BUCKET, "out/"):
        assert SECRET.encode() not in store.get(BUCKET, key)
