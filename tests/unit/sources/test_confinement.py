"""A run that came over HTTP reads nothing outside: whatever a table names, wherever a link leads, while it is planned
and while its shards are read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources import confinement, registry
from clip_queue.sources.confinement import LeadsOutside
from clip_queue.sources.detect import detect
from clip_queue.sources.source import IMAGE_HALF, TEXT_HALF, Row, Source
from tests import datasets
from tests.images import noise_image

SETTINGS = Settings()
SECRET = b"secret: " + noise_image(99, format="JPEG")


class Places:
    """A root ``in`` with an image ``good.jpg``, and what lies outside of it."""

    def __init__(self, folder: Path) -> None:
        self.inside, self.outside = folder / "in", folder / "in-secret"
        self.inside.mkdir()
        self.outside.mkdir()
        (self.inside / "good.jpg").write_bytes(noise_image(1, format="JPEG"))
        (self.outside / "secret.jpg").write_bytes(SECRET)
        (self.outside / "secret.txt").write_text("a secret")
        (self.inside / "link.jpg").symlink_to(self.outside / "secret.jpg")
        (self.inside / "folder").symlink_to(self.outside)
        self.settings = Settings(bulk_sources=str(self.inside))  # type: ignore[arg-type]

    def references(self) -> dict[str, str]:
        """Ways to name the secret."""
        secret = self.outside / "secret.jpg"
        return {
            "absolute": str(secret),
            "dots": "../in-secret/secret.jpg",
            "deep dots": "./../in/../in-secret/secret.jpg",
            "link": "link.jpg",
            "link to a folder": "folder/secret.jpg",
            "file URL": f"file://{secret}",
            "file URL with dots": f"file://{self.inside}/../in-secret/secret.jpg",
            "relative file URL": "file://in-secret/secret.jpg",
            "another scheme": f"local://{secret}",
            "memory": "memory://secret.jpg",
            "chained": f"simplecache::file://{secret}",
            "in an archive": f"zip://secret.jpg::file://{secret}",
            "a bucket": "s3://bucket/secret.jpg",
            "github": "github://owner:repo@main/secret.jpg",
        }


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture
def confined(places: Places) -> object:
    """This process is confined, as one that plans is."""
    confinement.of_process(places.settings)
    yield
    confinement._process = None


def csv(places: Places, names: list[str]) -> Path:
    path = places.inside / "t.csv"
    path.write_text("image,caption\n" + "\n".join(f'"{name}",x' for name in names) + "\n")
    return path


def jsonl(places: Places, names: list[str]) -> Path:
    path = places.inside / "t.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"image": name, "caption": "x"}) for name in names))
    return path


def parquet(places: Places, names: list[str]) -> Path:
    path = places.inside / "t.parquet"
    pq.write_table(pa.table({"image_path": names, "caption": ["x"] * len(names)}), path)
    return path


def read(places: Places, url: str, **more: object) -> list[Row]:
    """The rows of a source that is planned anywhere and read in confinement."""
    source = Source(url, detect(url), **more)  # type: ignore[arg-type]
    completed, shards = registry.plan_shards(source, 100, SETTINGS)
    within = replace(completed, within=tuple(places.settings.bulk_sources))
    return [row for shard in shards for row in registry.read(within, shard.pieces, SETTINGS)]


def image(row: Row) -> bytes | ClipError:
    if fault := row.faults.get(IMAGE_HALF):
        return fault
    try:
        return row.image() if callable(row.image) else row.image or b""
    except ClipError as error:
        return error


@pytest.mark.parametrize("table", [csv, jsonl, parquet])
def test_a_row_that_names_a_file_outside_fails_alone(
    places: Places, table: Callable[[Places, list[str]], Path]
) -> None:
    references = places.references()
    rows = read(places, str(table(places, [*references.values(), "good.jpg"])))
    found = dict(zip(references, map(image_or_os_error, rows), strict=False))
    assert len(rows) == len(references) + 1
    assert SECRET not in found.values()
    assert all(isinstance(each, Exception) for each in found.values()), found
    for name in ("absolute", "dots", "link", "link to a folder", "file URL", "a bucket", "memory"):
        assert "leads out of the places that may be read (setting bulk_sources)" in str(found[name]), name
    assert image(rows[-1]) == (places.inside / "good.jpg").read_bytes()


def image_or_os_error(row: Row) -> object:
    try:
        return image(row)
    except OSError as error:  # there is no such file
        return error


def test_without_confinement_rows_name_what_they_like(places: Places) -> None:
    url = str(csv(places, [str(places.outside / "secret.jpg"), "link.jpg"]))
    completed, shards = registry.plan_shards(Source(url, "csv"), 100, SETTINGS)
    rows = [row for shard in shards for row in registry.read(completed, shard.pieces, SETTINGS)]
    assert [image(row) for row in rows] == [SECRET, SECRET]


def test_a_root_of_images_that_lies_outside_gives_none(places: Places) -> None:
    url = str(csv(places, ["secret.jpg"]))
    source = Source(url, "csv", storage={"image_root": str(places.outside)})
    completed, shards = registry.plan_shards(source, 100, SETTINGS)
    within = replace(completed, within=tuple(places.settings.bulk_sources))
    (row,) = [row for shard in shards for row in registry.read(within, shard.pieces, SETTINGS)]
    assert "leads out" in str(image(row))


def test_links_in_a_folder_of_images_fail_alone_when_they_are_read(places: Places) -> None:
    (places.inside / "good.txt").symlink_to(places.outside / "secret.txt")
    rows = {row.columns["image_path"]: row for row in read(places, str(places.inside))}
    assert rows.keys() == {"good.jpg", "link.jpg", "folder/secret.jpg"}
    for name in ("link.jpg", "folder/secret.jpg"):
        assert "leads out" in str(image(rows[name]))
    assert image(rows["good.jpg"]) == (places.inside / "good.jpg").read_bytes()
    assert rows["good.jpg"].text is None
    assert "leads out" in str(rows["good.jpg"].faults[TEXT_HALF])
    assert "secret" not in str(rows["good.jpg"].columns["caption"])


def test_a_container_that_a_link_leads_to_is_not_read(places: Places) -> None:
    made = datasets.tars(places.outside / "tars", 3)
    (places.inside / "t.tar").symlink_to(Path(made.url) / "00000.tar")
    with pytest.raises(LeadsOutside, match="bulk_sources"):
        read(places, str(places.inside / "t.tar"))


def test_without_roots_nothing_is_read(places: Places) -> None:
    url = str(csv(places, ["good.jpg"]))
    completed, shards = registry.plan_shards(Source(url, "csv"), 100, SETTINGS)
    with pytest.raises(LeadsOutside):
        [*registry.read(replace(completed, within=()), next(shards).pieces, SETTINGS)]


def test_what_a_source_is_confined_to_is_not_written_down() -> None:
    source = Source("/in", "csv", within=("/in",))
    assert "within" not in source.to_json()
    assert Source.from_json({**source.to_json(), "within": ["/"]}).within is None


# Planning


def plan(url: str) -> None:
    _, shards = registry.plan_shards(Source(url, detect(url)), 100, SETTINGS)
    for _ in shards:
        pass


@pytest.mark.usefixtures("confined")
class TestPlanning:
    def test_what_lies_inside_is_planned(self, places: Places) -> None:
        (places.inside / "folder").unlink()
        (places.inside / "link.jpg").unlink()
        (places.inside / "own").symlink_to(places.inside / "good.jpg")
        plan(str(places.inside))
        plan(str(csv(places, ["good.jpg"])))

    @pytest.mark.parametrize("name", ["link.jpg", "folder"])
    def test_a_link_that_leads_outside_ends_it(self, places: Places, name: str) -> None:
        for other in {"link.jpg", "folder"} - {name}:
            (places.inside / other).unlink()
        with pytest.raises(LeadsOutside, match=f"{name} leads out"):
            plan(str(places.inside))

    def test_tables_outside_are_not_looked_at(self, places: Places) -> None:
        (places.outside / "t.csv").write_text("the,columns,of,a,secret\n1,2,3,4,5\n")
        (places.inside / "t.csv").symlink_to(places.outside / "t.csv")
        for url in ("t.csv", "*.csv", "{t,u}.csv", "folder/t.csv", "folder/*.csv", "fol*/t.csv"):
            with pytest.raises(ClipError) as refused:
                plan(str(places.inside / url))
            assert "columns" not in str(refused.value), url
        (places.inside / "link.jpg").unlink()
        with pytest.raises(LeadsOutside):
            plan(str(places.inside))

    @pytest.mark.parametrize("url", ["{inside}/../in-secret/*.csv", "{outside}/t.csv", "memory://a/t.csv"])
    def test_patterns_that_lead_outside_end_it(self, places: Places, url: str) -> None:
        (places.outside / "t.csv").write_text("image\nsecret.jpg\n")
        with pytest.raises(ClipError):
            plan(url.format(inside=places.inside, outside=places.outside))

    def test_tars_that_links_lead_to_end_it(self, places: Places) -> None:
        made = datasets.tars(places.outside / "tars", 3)
        (places.inside / "t").mkdir()
        (places.inside / "t" / "a.tar").symlink_to(Path(made.url) / "00000.tar")
        for url in ("t", "t/*.tar", "t/{a,b}.tar", "t/a.tar"):
            with pytest.raises(LeadsOutside):
                plan(str(places.inside / url))

    def test_captions_and_metadata_outside_are_not_read(self, places: Places) -> None:
        (places.inside / "sub").mkdir()
        (places.inside / "sub" / "good.jpg").write_bytes(noise_image(1))
        (places.outside / "metadata.csv").write_text("file_name,secret\ngood.jpg,1\n")
        (places.inside / "sub" / "metadata.csv").symlink_to(places.outside / "metadata.csv")
        with pytest.raises(LeadsOutside):
            plan(str(places.inside / "sub"))


def test_only_the_process_that_plans_is_confined() -> None:
    code = "from clip_queue.sources import confinement; print(confinement._process)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "None"
