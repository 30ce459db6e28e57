"""The search of the service: a real worker and outputs of the shipped model, queries, pages and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.harness import wait_for
from tests.images import base64_image
from tests.integration.search_site import SAMPLES, Site, embed, serving
from tests.wire import ok

pytestmark = pytest.mark.timeout(400)

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("search"), "samples", "hostile", "changing", "tar", "table") as it:
        yield it


def name_of(hit: dict[str, Any]) -> str:
    return Path(hit["image_path"]).stem


def test_the_outputs_are_listed_with_model_and_rows(site: Site) -> None:
    found = ok(site.http.get("/search"))["searches"]
    assert [each["name"] for each in found] == ["samples", "hostile", "changing", "tar", "table"]
    assert found[0] == {"name": "samples", "model": "emoji-mini", "among": "images", "rows": len(SAMPLES)}


def test_a_text_finds_the_picture_that_it_names(site: Site) -> None:
    response = site.post("samples", text="dog face", limit=3)
    hits = ok(response)["hits"]
    assert name_of(hits[0]) == "dog"
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert hits[0]["caption"] == "dog"
    assert response.headers["X-Clip-Queue-Model"] == "emoji-mini"


def test_an_image_finds_itself_and_a_row_finds_the_others(site: Site) -> None:
    dog = next(path for path in SAMPLES if path.stem == "dog").read_bytes()
    first = site.hits("samples", image=base64_image(dog))[0]
    assert name_of(first) == "dog"
    assert first["score"] > 0.999
    like = site.hits("samples", row=first["row"])
    assert first["row"] not in {hit["row"] for hit in like}
    assert len(like) == len(SAMPLES) - 1
    by_image = [hit["row"] for hit in site.hits("samples", image=base64_image(dog))]
    assert [hit["row"] for hit in like] == [row for row in by_image if row != first["row"]]


def test_pages_are_the_whole_in_order_and_end(site: Site) -> None:
    whole = [hit["row"] for hit in site.hits("samples", text="red", limit=100)]
    rows: list[int] = []
    offset: int | None = 0
    while offset is not None:
        page = ok(site.post("samples", text="red", limit=5, offset=offset))
        rows += [hit["row"] for hit in page["hits"]]
        offset = page["next_offset"]
    assert rows == whole
    assert len(set(rows)) == len(SAMPLES)
    like = [hit["row"] for hit in site.hits("samples", row=0, limit=100)]
    paged = [hit["row"] for o in range(0, 100, 4) for hit in site.hits("samples", row=0, limit=4, offset=o)]
    assert paged == like


def test_several_texts_are_searched_for_by_their_mean(site: Site) -> None:
    one = site.hits("samples", text="dog face")
    assert site.hits("samples", text=["dog face", "dog face"]) == one


@pytest.mark.parametrize("name", ["samples", "tar", "table"])
def test_a_hits_picture_is_that_of_its_row(site: Site, name: str) -> None:
    for hit in site.hits(name, text="an animal", limit=4):
        response = site.http.get(hit["image"])
        assert response.status_code == 200
        stem = hit["caption"] or name_of(hit)
        assert response.content == next(path for path in SAMPLES if path.stem == stem).read_bytes()
        assert response.headers["Content-Type"] == "image/png"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in response.headers["Content-Security-Policy"]


def test_metadata_are_what_can_be_shown(site: Site) -> None:
    (hit, *_) = site.hits("table", text="x")
    assert hit["metadata"]["likes"] in range(4)
    assert "raw" not in hit["metadata"]
    assert not {"source_file", "source_row"} & hit["metadata"].keys()


def test_what_is_not_there_is_told(site: Site) -> None:
    site.refused(404, "unknown_search", site.post("nothing", text="x"))
    site.refused(404, "unknown_search", site.http.get("/search/nothing/images/0"))
    for row in (len(SAMPLES), 10**9, 10**15, 2**53, 10**30, -1):
        site.refused(404, "unknown_row", site.http.get(f"/search/samples/images/{row}"))
    for row in (len(SAMPLES), 2**60, -1):
        site.refused(404, "unknown_row", site.post("samples", row=row))


@pytest.mark.parametrize(
    "body", [{}, {"text": "a", "row": 1}, {"text": []}, {"text": "a", "offset": 990, "limit": 24}, {"text": ["a"] * 9}]
)
def test_a_query_that_cannot_be_searched_for_is_refused(site: Site, body: dict[str, Any]) -> None:
    site.refused(400, "bad_input", site.post("samples", **body))


@pytest.mark.parametrize("body", [{"text": 1}, {"row": True}, {"text": "a", "limit": 0}, {"text": "a", "limit": 101}])
def test_a_query_of_another_form_is_refused(site: Site, body: dict[str, Any]) -> None:
    assert site.post("samples", **body).status_code == 422
    site.refused(400, "bad_image", site.post("samples", image={"type": "base64", "value": "bm8gcGljdHVyZQ=="}))


def test_a_picture_that_became_something_else_is_not_served(site: Site, tmp_path: Path) -> None:
    source = site.folder / "in" / "hostile"
    hits = {name_of(hit): hit for hit in site.hits("hostile", text="x", limit=100)}
    names = sorted(hits)
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)

    def path(number: int) -> Path:
        return source / f"{names[number]}.png"

    def why(number: int) -> str:
        return site.refused(404, "no_picture", site.http.get(hits[names[number]]["image"]))

    path(0).write_bytes(SVG)
    path(1).write_bytes(HTML)
    path(2).unlink()
    path(2).symlink_to(outside)
    path(3).unlink()
    path(3).symlink_to("/etc/passwd")
    path(4).unlink()
    path(5).unlink()
    path(5).mkdir()
    path(6).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(21 * 2**20))
    assert "no picture that a browser shows" in why(0)
    assert "no picture that a browser shows" in why(1)
    assert "outside of the source's folder" in why(2)
    assert "outside of the source's folder" in why(3)
    assert "not there any more" in why(4)
    assert "cannot be read" in why(5)
    assert "max_image_bytes" in why(6)
    assert all(str(site.folder) not in why(number) for number in range(7))
    assert site.http.get(hits[names[7]]["image"]).status_code == 200


def test_a_row_whose_path_leads_out_gets_no_picture(site: Site) -> None:
    """An output is files, and somebody may have edited them."""
    (file,) = (site.folder / "out" / "hostile" / "metadata").glob("*.parquet")
    before = file.read_bytes()
    table = pq.read_table(file)
    Image.new("RGB", (8, 8)).save(site.folder / "in" / "secret.png")
    try:
        for bad in ("../secret.png", str(site.folder / "in" / "secret.png"), "x/../../secret.png", "a\0b.png"):
            column = table.schema.get_field_index("image_path")
            changed = table.set_column(column, "image_path", pa.array([bad] * len(table)))
            pq.write_table(changed, file)
            site.refused(404, "no_picture", site.http.get("/search/hostile/images/0"))
    finally:
        file.write_bytes(before)


def test_an_output_that_is_updated_is_searched_as_it_is_now(site: Site) -> None:
    source = site.folder / "in" / "changing"
    assert len(site.hits("changing", text="x")) == 3
    for path in SAMPLES[3:6]:
        shutil.copy(path, source / path.name)
    (source / SAMPLES[0].name).unlink()
    embed(site.stack, str(source), site.folder / "out" / "changing", "--update")

    def now() -> set[str]:
        return {name_of(hit) for hit in site.hits("changing", text="x", limit=100)}

    wait_for(lambda: now() == {path.stem for path in SAMPLES[1:6]}, 60, "the update to be seen")
    for hit in site.hits("changing", text="x"):
        assert site.http.get(hit["image"]).status_code == 200
    rows = wait_for(lambda: {s["name"]: s["rows"] for s in site.http.get("/search").json()["searches"]}, 10)
    wait_for(lambda: {s["name"]: s["rows"] for s in site.http.get("/search").json()["searches"]}["changing"] == 5, 30)
    assert rows["samples"] == len(SAMPLES)
