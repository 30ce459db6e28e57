"""``--update`` and ``--retry-failed`` with a real stack: killed in the middle, and what they make of an output."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import orjson
import pytest

from tests import datasets
from tests.bulk_command import Embed
from tests.bulk_team import LOST, PASS, at_work, command
from tests.harness import wait_for
from tests.images import noise_image
from tests.outputs import checksums, strays, table
from tests.team import Team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GOOD, BAD = 0, 3  # statuses


def add(folder: Path, *numbers: int) -> None:
    """Images with captions."""
    for number in numbers:
        (folder / f"new {number}.jpg").write_bytes(noise_image(1000 + number, format="JPEG"))
        (folder / f"new {number}.txt").write_text(f"a caption that is new {number}")


def ended(run: Embed, status: int) -> str:
    run.start()
    assert run.ended() == status, run.said
    return run.said


def updated(pair: Team, folder: Path, url: str, *options: object, name: str) -> Embed:
    return command(pair, folder, url, folder / "out", "--update", *options, name=name)


def test_an_update_that_is_killed_goes_on_and_ends_as_one_that_was_not(pair: Team, tmp_path: Path) -> None:
    source = datasets.folder(tmp_path / "in", 40)  # nine shards of five
    folders = [tmp_path / "undisturbed", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
        ended(command(pair, folder, source.url, folder / "out"), BAD)
    first = checksums(folders[0] / "out")
    assert first == checksums(folders[1] / "out")
    time.sleep(0.05)  # a file's time is a little behind the clock
    add(tmp_path / "in", *range(12))
    for name in ("007 é", "008 é"):
        (tmp_path / "in" / f"{name}.jpg").unlink()
    for name in ("016 é", "031 é"):
        (tmp_path / "in" / f"{name}.jpg").write_bytes(noise_image(7, format="JPEG"))
    said = ended(command(pair, folders[0], source.url, folders[0] / "out", name="plain"), 1)
    assert "the source has changed since this output was made: 12 files are new" in said
    assert "--update embeds what is new or changed, and drops what is gone" in said
    said = ended(updated(pair, folders[0], source.url, name="update"), BAD)
    assert "3 of 9 shards are embedded again, 3 are new" in said
    whole = checksums(folders[0] / "out")
    kept = [name for name in first if name.partition("_emb_")[2] not in ("1.npy", "3.npy", "6.npy") and ".npy" in name]
    assert len(kept) == 10, "images and texts of the five that have nothing new, of eight with vectors"
    assert {name: whole[name] for name in kept} == {name: first[name] for name in kept}

    run = updated(pair, folders[1], source.url, name="update")
    pair.faults.delay(PASS)
    run.start()
    wait_for(lambda: run.revised() >= 1 or not run.alive, 240, f"a first shard:\n{run.said}")
    at_work(pair).kill()
    run.kill()
    assert checksums(folders[1] / "out") == first, "nothing has changed before all is there"
    pair.tend()
    run.start()
    wait_for(lambda: run.revised() >= 3 or not run.alive, LOST + 240, f"more shards:\n{run.said}")
    run.kill()
    pair.heal()
    said = ended(run, BAD)
    assert checksums(folders[1] / "out") == whole
    assert strays(folders[1] / "out") == []
    rows = [row["image_path"] for row in table(folders[1] / "out")]
    assert len(rows) == len(set(rows)) == 50
    assert "the source is as it was: nothing to do" in ended(run, BAD)


def test_rows_that_failed_while_a_network_was_down_come_in_their_places(pair: Team, tmp_path: Path) -> None:
    images = datasets.folder(tmp_path / "images", 30, captions=False)
    rows = [
        {"image": f"images/{name}", **({"text": name} if i % 3 else {})} for i, (name, _, _) in enumerate(images.good)
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*map(orjson.dumps, rows), b"{broken"]))
    url = str(tmp_path / "in.jsonl")
    (tmp_path / "whole").mkdir()
    ended(command(pair, tmp_path / "whole", url, tmp_path / "whole" / "out"), BAD)
    whole = checksums(tmp_path / "whole" / "out")

    away = tmp_path / "away"
    away.mkdir()
    for number in (0, 1, 12, 13, 14):  # rows of two shards; some have a text, which is embedded alone
        shutil.move(tmp_path / "images" / images.good[number][0], away)
    run = command(pair, tmp_path, url, tmp_path / "out")
    said = ended(run, BAD)
    assert "the same command with --retry-failed" in said
    assert checksums(tmp_path / "out") != whole
    for path in away.iterdir():
        shutil.move(path, tmp_path / "images")

    again = command(pair, tmp_path, url, tmp_path / "out", "--retry-failed", name="again")
    pair.faults.delay(PASS)
    again.start()
    wait_for(lambda: again.revised() >= 1 or not again.alive, 240, f"a first shard:\n{again.said}")
    again.kill()
    pair.faults.clear()
    said = ended(again, BAD)
    assert "5 of 6 rows that had failed are embedded now" in said
    assert "30 rows embedded, 1 failed" in said
    assert checksums(tmp_path / "out") == whole
    assert strays(tmp_path / "out") == []


def test_an_update_without_a_redis_starts_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\n")
    options = ("--workers", 1)
    run = Embed(tmp_path, str(tmp_path / "in.txt"), tmp_path / "out", *options, env={})
    assert run.start().ended() == GOOD, run.said
    time.sleep(0.05)
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    update = Embed(tmp_path, str(tmp_path / "in.txt"), tmp_path / "out", *options, "--update", name="update", env={})
    assert update.start().ended() == GOOD, update.said
    assert "1 file has changed (in.txt): 1 is new" in update.said
    assert [row["caption"] for row in table(tmp_path / "out")] == ["a", "b", "c"]
