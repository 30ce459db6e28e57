"""``clip-queue embed`` as it is typed: what it says, its exit status, and the same command again after any end."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
import pytest

from tests import datasets
from tests.bulk_command import Embed, manifest, running
from tests.harness import wait_for
from tests.outputs import checksums, matrix, strays, table
from tests.pictures import picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 1500
SHARD = 50
OPTIONS = ("--shard-size", SHARD, "--batch-size", 4, "--workers", 1)
STARTED = 120.0  # seconds that the embedded stack may take to start on a loaded machine
GONE = 45.0  # seconds that its processes may take to end with a command that was killed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Rows of pictures and captions; the last five are bad, for three reasons."""
    folder = tmp_path_factory.mktemp("bulk command")
    pictures = {f"{i} é.jpg": picture(i, format="JPEG") for i in range(10)}
    bad = {"cut.jpg": pictures["0 é.jpg"][:500], "words.jpg": b"no picture", "none.jpg": b""}
    for name, data in (pictures | bad).items():
        (folder / name).write_bytes(data)
    good = [(f"{i % 10} é.jpg", f"caption {i}") for i in range(ROWS)]
    rows = [{"image": name, "text": text} for name, text in [*good, *((name, "bad") for name in bad)]]
    lines = [*map(orjson.dumps, rows), b"{not json", orjson.dumps({"image": "0 é.jpg", "text": "word " * 500})]
    (folder / "in.jsonl").write_bytes(b"\n".join(lines))
    return datasets.Dataset(str(folder / "in.jsonl"), [(name, pictures[name], text) for name, text in good], list(bad))


def embed(folder: Path, source: str, output: Path, *options: object, **env: str) -> Embed:
    # Each run has its temporary files where the test can see them.
    (temporary := folder / "tmp").mkdir(exist_ok=True)
    return Embed(folder, source, output, *options, env={"TMPDIR": str(temporary), **env})


@pytest.fixture(scope="module")
def whole(source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embed]:
    """A run that nothing happened to, ended."""
    folder = tmp_path_factory.mktemp("whole")
    command = embed(folder, source.url, folder / "out", *OPTIONS)
    command.start()
    try:
        command.ended()
        yield command
    finally:
        command.kill()


@pytest.fixture
def again(source: datasets.Dataset, tmp_path: Path) -> Iterator[Embed]:
    """The same for a test to disturb."""
    command = embed(tmp_path, source.url, tmp_path / "out", *OPTIONS)
    yield command
    command.kill()


# What it says


def test_a_run_with_bad_rows_ends_with_3_and_reports_them(whole: Embed, source: datasets.Dataset) -> None:
    said = whole.said
    assert whole.ended() == 3, said
    assert f"✓ {ROWS:,} rows embedded, 5 failed, in {whole.output}" in said
    assert re.search(r"[\d,]+ rows/s, .*, limited by (reading|decoding|the forward pass) \(\d+% of the waiting\)", said)
    assert re.search(r"model emoji-mini, fingerprint [0-9a-f]{16}\n", said)
    assert re.search(r"^ *bad_image +3 +cut\.jpg: Could not load input image\.", said, re.MULTILINE), said
    assert re.search(r"^ *text_too_long +1 ", said, re.MULTILINE)
    assert re.search(r"^ *bad_input +1 ", said, re.MULTILINE), said
    assert f"all of them, with their errors: {whole.output}/errors" in said
    assert len(table(whole.output)) == ROWS
    assert len(table(whole.output, "errors")) == 5
    assert matrix(whole.output, "img_emb").shape == matrix(whole.output, "text_emb").shape == (ROWS, 128)
    assert strays(whole.output) == []
    assert (manifest(whole.output)["result"]["rows"], manifest(whole.output)["result"]["failed"]) == (ROWS, 5)


def test_without_a_terminal_it_says_a_line_every_few_seconds(whole: Embed) -> None:
    lines = [line for line in whole.said.splitlines() if " of 1,505 rows" in line]
    assert lines, whole.said
    for line in lines:
        assert re.fullmatch(
            r"[\d,]+ of 1,505 rows \(\d+%\), [\d,]+ rows/s(, [\w ]+ left)?(, \d failed)?(, CPU \d+% busy)?, 1 worker",
            line,
        )
    assert len(lines) <= 2 + whole_seconds(whole) / 4
    assert not set(whole.said) & {"\x1b", "\r", "━", "⠋"}


def whole_seconds(whole: Embed) -> float:
    return float(manifest(whole.output)["result"]["seconds"])


def test_what_is_finished_is_reported_again_at_once_and_starts_nothing(
    whole: Embed, source: datasets.Dataset, tmp_path: Path
) -> None:
    before = checksums(whole.output)
    nothing = {"CLIP_QUEUE_MODELS": "emoji-mini", "CLIP_QUEUE_DEVICE": "cuda:99"}  # no worker could start like this
    command = embed(tmp_path, source.url, whole.output, **nothing).start()
    assert command.ended(60) == 3, command.said
    assert f"✓ {ROWS:,} rows embedded, 5 failed" in command.said
    assert "rows/s" not in command.said
    assert checksums(whole.output) == before
    assert strays(whole.output) == []


@pytest.fixture(scope="module")
def asked(
    whole: Embed, source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Embed]]:
    """Commands that end before anything is started, side by side."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "empty").mkdir()
    (folder / "file").touch()
    out, url, secret = folder / "out", source.url, "redis://:hunter2@127.0.0.1:1/0"
    given: dict[str, tuple[object, ...]] = {
        "missing": (folder / "missing", out),
        "empty": (folder / "empty", out),
        "unwritable": (url, folder / "file"),
        "another": (url, whole.output, "--shard-size", SHARD + 1),
        "dtype": (url, out, "--dtype", "int8"),
        "format": (url, out, "--format", "tarball"),
        "password": (folder / "missing", out, "--redis", secret),
        "password, joined": (folder / "missing", out, f"--redis={secret}"),
        "dry run": (url, folder / "dry", "--dry-run", "--shard-size", 100),
    }
    commands = {
        name: Embed(folder, str(of), Path(str(to)), *options, name=name, env={})
        for name, (of, to, *options) in given.items()
    }
    for command in commands.values():
        command.start()
    yield commands
    for command in commands.values():
        command.kill()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "missing does not exist; looked for a folder of pictures, or .tar"),
        ("empty", "empty"),
        ("unwritable", "the output cannot be written"),
        ("another", "the output belongs to another run: shard size is 50 there, 51 here. Choose another output"),
        ("format", "format 'tarball' is not known: use one of folder, webdataset, parquet, text, csv, jsonl"),
    ],
)
def test_what_cannot_begin_ends_with_1_and_says_why_and_how_to_go_on(
    asked: dict[str, Embed], name: str, why: str
) -> None:
    command = asked[name]
    assert command.ended(120) == 1, command.said
    assert f"clip-queue: {why}" in command.said or why in command.said.splitlines()[0]
    resume = next(i for i, line in enumerate(command.said.splitlines()) if line.startswith("To go on"))
    assert command.said.splitlines()[resume + 1].strip().startswith("clip-queue embed ")
    assert str(command.output) in command.said.splitlines()[resume + 1]
    assert "Traceback" not in command.said


def test_a_wrong_dtype_is_refused_with_those_that_there_are(asked: dict[str, Embed]) -> None:
    assert asked["dtype"].ended(120) == 1
    assert "--dtype int8: use float16 or float32" in asked["dtype"].said


@pytest.mark.parametrize("name", ["password", "password, joined"])
def test_a_password_is_not_said(asked: dict[str, Embed], name: str) -> None:
    assert asked[name].ended(120) == 1
    assert "clip-queue embed" in asked[name].said
    assert "hunter2" not in asked[name].said


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(asked: dict[str, Embed]) -> None:
    command = asked["dry run"]
    assert command.ended(120) == 0, command.said
    assert "jsonl: 1,505 rows in 16 shards, images and texts to embed" in command.said
    assert "nothing was written (--dry-run)" in command.said
    assert not command.output.exists()


# How it may end


def test_stopped_stopped_twice_and_killed_the_same_command_goes_on_to_the_same_bytes(
    again: Embed, whole: Embed, tmp_path: Path
) -> None:
    again.start()
    again.in_the_middle()
    children = again.children()
    assert len(children) >= 2, "Valkey and a worker"
    assert stopped(again) < 10
    assert again.ended() == 130
    assert re.search(r"\d+ of 31 shards are whole and stay\. To go on:\n  clip-queue embed \S+ \S+", again.said)
    assert running(children) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    resumed = again.whole()

    again.start()
    again.in_the_middle()
    assert again.whole() > resumed
    children = again.children()
    assert interrupted(again) < 3
    assert again.ended() == 130
    wait_for(lambda: not running(children), GONE, f"its processes to end with it: {children}")

    again.start()
    again.in_the_middle()
    children = again.children()
    again.kill()
    killed = time.monotonic()

    again.start()  # at once: what was started then may still be there
    wait_for(lambda: not running(children), GONE, f"its processes to end with it: {children}")
    assert time.monotonic() - killed < GONE
    assert again.ended() == 3, again.said
    assert re.search(r"^  [\d,]+ of them were there before$", again.said, re.MULTILINE)
    assert checksums(again.output) == checksums(whole.output)
    assert strays(again.output) == []


def stopped(command: Embed) -> float:
    """Seconds from one Ctrl-C to its end."""
    began = time.monotonic()
    command.signal(signal.SIGINT)
    command.ended()
    return time.monotonic() - began


def interrupted(command: Embed) -> float:
    """Seconds from the first of many Ctrl-C to its end."""
    began = time.monotonic()
    wait_for(lambda: command.signal(signal.SIGINT) or not command.alive, 60, "its end")
    return time.monotonic() - began


def test_stopped_while_its_workers_start_it_ends_with_130_as_well(again: Embed) -> None:
    again.start()
    wait_for(lambda: len(again.children()) >= 2, STARTED, "Valkey and a worker")
    children = again.children()
    assert stopped(again) < 10
    assert again.ended() == 130, again.said
    assert "To go on" in again.said
    assert running(children) == []


@dataclass
class Terminal:
    """What a command shows on a terminal of 160 columns."""

    process: subprocess.Popen[bytes]
    master: int
    shown: bytes = b""

    def read(self) -> bool:
        """Take in what there is; False when the other side has closed it."""
        try:
            more = os.read(self.master, 65536)
        except OSError:
            return False
        self.shown += more
        return bool(more)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "in.txt").write_text("\n".join(f"line {i}" for i in range(500)))
    command = embed(tmp_path, str(tmp_path / "in.txt"), tmp_path / "out", *OPTIONS)
    master, slave = pty.openpty()
    env = {**command.env, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "30"}
    process = subprocess.Popen(command.command, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    yield Terminal(process, master)
    for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
        child.kill()
    process.kill()
    process.wait(10)
    os.close(master)


def test_on_a_terminal_there_is_a_bar_and_a_clean_source_ends_with_0(terminal: Terminal) -> None:
    while terminal.read():
        pass
    assert terminal.process.wait(60) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.shown.decode())
    assert "━" in shown
    assert re.search(r"\d+ / 500 .*rows/s, .*1 worker", shown)
    assert "✓ 500 rows embedded, 0 failed" in shown
    assert shown.rstrip().splitlines()[-1].startswith("  model emoji-mini"), "the report is what stays"
    assert terminal.shown.rstrip().endswith(b"\x1b[0m") or b"\x1b[?25h" in terminal.shown, "the cursor is back"
