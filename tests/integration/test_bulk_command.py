"""``clip-queue embed`` as it is typed: what it says, its exit status, and the same command again after any end."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
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
from tests.images import noise_image
from tests.outputs import checksums, matrix, strays, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 1500
SHARD = 50
SHARDS = 31
OPTIONS = ("--shard-size", SHARD, "--batch-size", 4, "--workers", 1)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
STARTED = 120.0  # seconds that the embedded stack may take to start on a loaded machine
GONE = 45.0  # seconds that its processes may take to end with a command that was killed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Rows of images and captions; the last five are bad, for three reasons."""
    folder = tmp_path_factory.mktemp("bulk command")
    images = {f"{i} é.jpg": noise_image(i, format="JPEG") for i in range(10)}
    bad = {"cut.jpg": images["0 é.jpg"][:500], "words.jpg": b"no image", "none.jpg": b""}
    for name, data in (images | bad).items():
        (folder / name).write_bytes(data)
    good = [(f"{i % 10} é.jpg", f"caption {i}") for i in range(ROWS)]
    # What is bad has no other half, which would be embedded.
    rows = [*({"image": name, "text": text} for name, text in good), *({"image": name} for name in bad)]
    lines = [*map(orjson.dumps, rows), b"{not json", orjson.dumps({"text": "word " * 500})]
    (folder / "in.jsonl").write_bytes(b"\n".join(lines))
    return datasets.Dataset(str(folder / "in.jsonl"), [(name, images[name], text) for name, text in good], list(bad))


def embed(folder: Path, source: str, output: Path, *options: object, **env: str) -> Embed:
    # Each run has its temporary files where the test can see them.
    (temporary := folder / "tmp").mkdir(exist_ok=True)
    return Embed(folder, source, output, *options, env={"TMPDIR": str(temporary), **env})


@pytest.fixture(scope="module")
def whole_beside(source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embed]:
    """A run that nothing happens to; other tests may go on beside it."""
    folder = tmp_path_factory.mktemp("whole")
    command = embed(folder, source.url, folder / "out", *OPTIONS)
    command.start()
    yield command
    command.stop()


@pytest.fixture
def whole(whole_beside: Embed) -> Embed:
    """The same, ended."""
    whole_beside.ended()
    return whole_beside


@pytest.fixture
def again(source: datasets.Dataset, tmp_path: Path) -> Iterator[Embed]:
    """The same for a test to disturb."""
    command = embed(tmp_path, source.url, tmp_path / "out", *OPTIONS)
    yield command
    if command.process:
        command.stop()


# How it may end


@dataclass
class Terminal:
    """A terminal of 160 columns, and what a command shows on it."""

    process: subprocess.Popen[bytes]
    master: int
    shown: str = ""

    @classmethod
    def of(cls, command: Embed) -> Terminal:
        master, slave = pty.openpty()
        env = {**command.env, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "30"}
        # Its controlling terminal: what is typed there reaches it as a signal.
        launcher = [sys.executable, "-c", LAUNCH, *command.command]
        process = subprocess.Popen(launcher, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)
        os.set_blocking(master, False)
        return cls(process, master)

    def read(self) -> str:
        """All that was shown by now."""
        try:
            while more := os.read(self.master, 65536):
                self.shown += more.decode(errors="replace")
        except OSError:  # nothing more yet, or the other side has closed it
            pass
        return self.shown

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ended(self, timeout: float) -> int:
        """Its exit status. A terminal that nobody reads blocks who writes to it."""
        wait_for(lambda: self.read() is None or self.process.poll() is not None, timeout, self.shown)
        self.read()
        return self.process.wait()


LAUNCH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def terminal(again: Embed) -> Iterator[Terminal]:
    """The command on a terminal, with room for it to show its bar."""
    it = Terminal.of(again)
    yield it
    if it.process.poll() is None:
        it.process.terminate()
        it.ended(60)
    os.close(it.master)


def test_stopped_and_killed_the_same_command_goes_on_to_the_same_bytes(
    terminal: Terminal, again: Embed, whole_beside: Embed, tmp_path: Path
) -> None:
    wait_for(lambda: terminal.read() is None or again.complete() >= 2, STARTED, terminal.shown)
    children = psutil.Process(terminal.process.pid).children(recursive=True)
    assert len(children) >= 2, "Valkey and a worker"
    asked = time.monotonic()
    terminal.type("\x03")  # Ctrl-C
    assert terminal.ended(60) == 130, terminal.shown
    assert time.monotonic() - asked < 10
    assert running(children) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    bar, report = terminal.shown.rsplit("\r", 1)[0], ESCAPE.sub("", terminal.shown)
    assert "━" in bar
    assert re.search(r"\d+ / 1505 .*rows/s, .*1 worker", ESCAPE.sub("", bar))
    assert terminal.shown.count("\x1b[?25l") == terminal.shown.count("\x1b[?25h") > 0, "the cursor is back"
    assert re.search(r"\d+ of 31 shards are complete and stay\. To go on:\s+clip-queue embed \S+", report)
    resumed = again.complete()
    assert resumed < SHARDS

    again.start()
    again.in_the_middle()
    assert again.complete() > resumed
    children = again.children()
    again.kill()
    again.start()  # at once: what was started then may still be there
    wait_for(lambda: not running(children), GONE, f"its processes to end with it: {children}")
    assert again.ended() == 3, again.said
    assert re.search(r"^  [\d,]+ of them were there before$", again.said, re.MULTILINE)
    assert whole_beside.ended() == 3, whole_beside.said
    assert checksums(again.output) == checksums(whole_beside.output)
    assert strays(again.output) == []


def test_stopped_while_its_workers_start_it_ends_with_130_as_well(again: Embed) -> None:
    again.start()
    wait_for(lambda: len(again.children()) >= 2, STARTED, "Valkey and a worker")
    children = again.children()
    asked = time.monotonic()
    again.signal(signal.SIGINT)
    assert again.ended(60) == 130, again.said
    assert time.monotonic() - asked < 10
    assert "stopped before it was ready\nTo go on:\n  clip-queue embed " in again.said
    assert running(children) == []


# What it says


def test_a_run_with_bad_rows_ends_with_3_and_reports_them(whole: Embed, source: datasets.Dataset) -> None:
    said = whole.said
    assert whole.ended() == 3, said
    assert f"✓ {ROWS:,} rows embedded, 5 failed, in {whole.output}" in said
    assert re.search(r"[\d,]+ rows/s, .*, limited by (reading|decoding|the forward pass) \(\d+% of the waiting\)", said)
    assert re.search(r"model emoji-mini, fingerprint [0-9a-f]{16}\n", said)
    assert re.search(r"^ *bad_image +4 +cut\.jpg: Could not load input image\.", said, re.MULTILINE), said
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
def asked(source: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Embed]]:
    """Commands that end before anything is started, side by side."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "empty").mkdir()
    (folder / "file").touch()
    out, url, secret = folder / "out", source.url, "redis://:hunter2@127.0.0.1:1/0"
    given: dict[str, tuple[object, ...]] = {
        "missing": (folder / "missing", out),
        "empty": (folder / "empty", out),
        "unwritable": (url, folder / "file"),
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
        ("missing", "missing does not exist; looked for a folder of images, or .tar"),
        ("empty", "empty"),
        ("unwritable", "the output cannot be written"),
        (
            "format",
            "format 'tarball' is not known: use one of folder, webdataset, zip, parquet, arrow, text, csv",
        ),
    ],
)
def test_what_cannot_begin_ends_with_1_and_says_why_and_how_to_go_on(
    asked: dict[str, Embed], name: str, why: str
) -> None:
    refused(asked[name], why)


def test_other_options_into_an_output_that_is_there_are_refused(
    whole: Embed, source: datasets.Dataset, tmp_path: Path
) -> None:
    before = checksums(whole.output)
    refused(
        embed(tmp_path, source.url, whole.output, "--shard-size", SHARD + 1).start(),
        "the output belongs to another run: shard size is 50 there, 51 here. Choose another output",
    )
    assert checksums(whole.output) == before


def refused(command: Embed, why: str) -> None:
    """It ends with 1, the reason, and the command that goes on."""
    assert command.ended(120) == 1, command.said
    first, then, resume = command.said.splitlines()
    assert first.startswith("clip-queue: ")
    assert why in first
    assert then == "To go on once that is mended:"
    assert resume.startswith("  clip-queue embed ")
    assert str(command.output) in resume


def test_a_wrong_dtype_is_refused_with_those_that_there_are(asked: dict[str, Embed]) -> None:
    assert asked["dtype"].ended(120) == 1
    assert "dtype 'int8' is not known: use float16 or float32" in asked["dtype"].said


@pytest.mark.parametrize("name", ["password", "password, joined"])
def test_a_password_is_not_said(asked: dict[str, Embed], name: str) -> None:
    assert asked[name].ended(120) == 1
    assert "clip-queue embed" in asked[name].said
    assert "hunter2" not in asked[name].said


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(asked: dict[str, Embed]) -> None:
    command = asked["dry run"]
    assert command.ended(120) == 0, command.said
    assert "jsonl: 1,505 rows in 16 shards\n  to embed: images and texts: images from" in command.said
    assert "nothing was written (--dry-run)" in command.said
    assert not command.output.exists()
