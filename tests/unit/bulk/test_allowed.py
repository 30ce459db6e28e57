"""The worker's look at a run that came over HTTP: where its paths really lead on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.bulk.run.allowed import check_request
from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.roots import OutsideRoots
from clip_queue.shared.runs import RunRequest
from clip_queue.shared.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in/a", "out", "secret"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def check(folder: Path, source: str = "in/a", output: str = "out/a", **options: str) -> None:
    settings = Settings(bulk_sources=str(folder / "in"), bulk_outputs=str(folder / "out"))  # type: ignore[arg-type]
    given = {name: str(folder / value) for name, value in options.items()}
    check_request(RunRequest([str(folder / source)], str(folder / output), given), settings)


def test_what_lies_inside_is_allowed_also_by_links(folder: Path) -> None:
    (folder / "in" / "own").symlink_to(folder / "in" / "a")
    (folder / "out" / "a").mkdir()
    (folder / "out" / "real").mkdir()
    (folder / "out" / "a" / "img_emb").symlink_to(folder / "out" / "real")
    check(folder)
    check(folder, "in/own")
    check(folder, "in/{a,b}/*.csv", "out/new/deep", image_root="in/a")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"source": "in/link"}, OutsideRoots, "link leads out .*bulk_sources"),
        ({"source": "in/link/*.csv"}, OutsideRoots, "bulk_sources"),
        ({"image_root": "in/link"}, OutsideRoots, "bulk_sources"),
        ({"image_root": "secret"}, OutsideRoots, "bulk_sources"),
        ({"output": "out/link"}, OutsideRoots, "bulk_outputs"),
        ({"output": "out/link/new"}, OutsideRoots, "bulk_outputs"),
        ({"output": "out/begun"}, OutsideRoots, "metadata leads out .*bulk_outputs"),
        ({"output": "out/into source"}, ClipError, "lies in the source|leads out"),
        ({"source": "secret"}, OutsideRoots, "bulk_sources"),
        ({"source": "in/../secret"}, BadInput, "no '..'"),
    ],
)
def test_what_leads_outside_is_refused(folder: Path, change: dict[str, str], error: type[ClipError], says: str) -> None:
    (folder / "in" / "link").symlink_to(folder / "secret")
    (folder / "out" / "link").symlink_to(folder / "secret")
    (folder / "out" / "into source").symlink_to(folder / "in" / "a")
    (folder / "out" / "begun").mkdir()
    (folder / "out" / "begun" / "metadata").symlink_to(folder / "secret")
    with pytest.raises(error, match=says):
        check(folder, **change)


def test_an_output_that_is_really_in_its_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    settings = Settings(bulk_sources=str(tmp_path / "alias"), bulk_outputs=str(tmp_path / "data"))  # type: ignore[arg-type]
    request = RunRequest([str(tmp_path / "alias" / "a")], str(tmp_path / "data" / "a" / "out"))
    with pytest.raises(OutsideRoots, match="lies in the source"):
        check_request(request, settings)


@pytest.mark.parametrize("missing", ["bulk_sources", "bulk_outputs"])
def test_a_worker_without_the_setting_names_it(folder: Path, missing: str) -> None:
    given = {"bulk_sources": str(folder / "in"), "bulk_outputs": str(folder / "out"), missing: ""}
    settings = Settings(**given)  # type: ignore[arg-type]
    with pytest.raises(OutsideRoots, match=f"CLIP_QUEUE_{missing.upper()}"):
        check_request(RunRequest([str(folder / "in" / "a")], str(folder / "out" / "a")), settings)
