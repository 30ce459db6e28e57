"""The commands as a user types them: help, refusals, and messages without secrets. No service is started here."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clip_queue.bulk.run.options import options
from clip_queue.cli.main import app, resume_command
from clip_queue.stack.machine import free_port
from clip_queue.version import __version__
from tests.images import noise_image

run = CliRunner().invoke


def test_version_and_help() -> None:
    assert run(app, ["--version"]).output == f"clip-queue {__version__}\n"
    helped = run(app, ["--help"]).output
    assert all(command in helped for command in ("up", "models", "status", "jobs", "demo", "embed", "search"))


def test_the_command_starts_without_torch_or_the_services() -> None:
    code = (
        "import sys, clip_queue.cli.main;"
        "print([m for m in ('torch', 'open_clip', 'celery', 'fastapi', 'prometheus_client') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


def test_the_package_can_be_run() -> None:
    command = [sys.executable, "-m", "clip_queue.cli", "--version"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout == f"clip-queue {__version__}\n"


# up


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--host", "0.0.0.0"],
            ["no API key is set, so anyone who reaches 0.0.0.0 could use this service", "CLIP_QUEUE_API_KEYS"],
        ),
        (["--model", "no-such"], ["unknown model 'no-such'", "ViT-B-16", "NAME=SOURCE"]),
        (["--redis", "s3cr3t"], ["wrong settings: --redis: ", "redis://"]),
        (["--redis", "http://:s3cr3t@host"], ["wrong settings: --redis: ", "redis://"]),
    ],
)
def test_up_refuses_in_a_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = run(app, ["up", "--data-dir", str(tmp_path / "data"), "--port", str(free_port()), *arguments])
    assert result.exit_code == 1
    assert all(word in result.stderr for word in words)
    assert len(result.stderr.splitlines()) == 1
    assert "s3cr3t" not in result.output
    assert "Traceback" not in result.output


def test_wrong_settings_are_named_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_LEASE", "hunter2")
    result = run(app, ["up"])
    assert result.exit_code == 1
    assert "clip-queue: wrong settings: CLIP_QUEUE_LEASE: Input should be a valid number" in result.stderr
    assert "hunter2" not in result.output


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(app, ["up", "--data-dir", str(tmp_path / "file" / "data")])
    assert result.exit_code == 1
    assert "cannot write to" in result.stderr
    assert "--data-dir" in result.stderr


# embed


def test_each_option_of_a_run_is_one_flag_of_embed() -> None:
    helped = run(app, ["embed", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    flags = [
        flag for name, (_, o) in options().items() for flag in (o.flags or f"--{name.replace('_', '-')}").split("/")
    ]
    assert len(flags) == len(set(flags)) >= 17
    for flag in [*flags, "--workers", "--redis", "--part", "--log-file", "--dry-run"]:
        assert len(re.findall(rf"^\W*(?:--[a-z-]+[ /,]+)?{flag}\b(?!-)", helped, re.MULTILINE)) == 1, (flag, helped)
    assert "Of the stored vectors, float16 or float32. [default: float16]" in re.sub(r"[\s│]+", " ", helped)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(noise_image(n))
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "0/16"], "there is no part 0/16: parts are counted from 1, 1/16 to 16/16"),
        (["--part", "17/16", "--dry-run"], "there is no part 17/16: parts are counted from 1, 1/16 to 16/16"),
        (["--part", "a/b"], "part 'a/b' is not understood: use K/N for the Kth of N parts, as 3/16"),
        (
            ["--part", "1/2", "--redis", "redis://127.0.0.1:1/0"],
            "give either the part or the Redis (redis_url, --redis)",
        ),
        (["--columns", "a"], "a source of the format folder has no columns"),
        (["--log-file", "no folder/log"], "cannot be written (No such file or directory): name another one"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    dataset: str, arguments: list[str], message: str
) -> None:
    result = run(app, ["embed", dataset, "out", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
    assert not Path("out").exists()


def test_a_dry_run_of_a_part_says_how_much_it_has(dataset: str) -> None:
    result = run(app, ["embed", dataset, "out", "--dry-run", "--part", "2/2", "--shard-size", "1"])
    assert (result.exit_code, "part 2/2 has 1 of the shards" in result.output) == (0, True)


def test_a_dry_run_prints_what_would_be_done(dataset: str, tmp_path: Path) -> None:
    result = run(app, ["embed", dataset, str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0
    assert "folder: 3 rows in 1 shards\n  to embed: images only\n" in result.output
    assert "nothing was written (--dry-run)" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "int8"], "dtype 'int8' is not known: use float16 or float32"),
        (["--format", "tarball"], "format 'tarball' is not known: use one of"),
        (["--no-images"], ""),
    ],
)
def test_embed_refuses_with_the_command_to_repeat(dataset: str, arguments: list[str], words: str) -> None:
    result = run(app, ["embed", dataset, "out", "--dry-run", *arguments])
    assert result.exit_code == 1
    first, then, _ = result.stderr.splitlines()
    assert first.startswith("clip-queue: ")
    assert words in first
    assert then == "To go on once that is mended:"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard-size", "0"], "--shard-size"),
        (["--batch-size", "5000"], "--batch-size"),
        (["--workers", "65"], "--workers"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(dataset: str, arguments: list[str], words: str) -> None:
    result = run(app, ["embed", dataset, "out", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_command_to_repeat_hides_the_value_of_redis() -> None:
    assert resume_command(["embed", "a b", "out"]) == "clip-queue embed 'a b' out"
    assert resume_command(["embed", "in", "out", "--redis", "redis://:x@h"]) == "clip-queue embed in out --redis '…'"
    assert resume_command(["embed", "--redis=redis://:x@h", "in"]) == "clip-queue embed '--redis=…' in"


# search


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-folder", "dog"], "no-such-folder"),
        (["out", "--image", "no-such-file"], "no-such-file cannot be read: No such file or directory"),
    ],
)
def test_search_refuses_in_a_line(arguments: list[str], words: str) -> None:
    result = run(app, ["search", *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith("clip-queue: ")
    assert words in result.stderr


@pytest.mark.parametrize("command", [["embed", "in", "out"], ["search", "out", "dog"]])
def test_a_package_that_is_not_installed_is_named(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    imported: Callable[..., Any] = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith(("clip_queue.bulk.run.embed", "clip_queue.cli.search")):
            raise ModuleNotFoundError(name="pyarrow")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run(app, command)
    assert result.exit_code == 1
    assert result.stderr == "clip-queue: pyarrow is not installed: pip install 'clip-queue[serve]'\n"
