"""Jobs, Service and Search in a real browser, before a real service with the shipped model."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from clip_queue.api.page import SAMPLES
from tests.browser import HIDE, WAIT, Watched, accessible, best, give, read, sample
from tests.harness import Api, stack, wait_for
from tests.images import noise_image
from tests.jobs_api import ended, look, submit, submit_texts
from tests.team import START, Team
from tests.wire import ok

pytestmark = pytest.mark.timeout(600)

KEYS = ("key-of-öne", "key-of-another")
AWAY = ("Failed to load resource", "net::ERR")
HOSTILE = "<img src=x onerror=alert(6)><script>alert(7)</script>"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``in`` holds pictures with captions, one of which is no picture; outputs may be written to ``out``."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "out").mkdir()
    shutil.copytree(SAMPLES, folder / "in", ignore=lambda _, names: [n for n in names if not n.endswith(".png")])
    for path in (folder / "in").glob("*.png"):
        path.with_suffix(".txt").write_text(HOSTILE if path.stem == "ghost" else path.stem)
    for i in range(40):
        (folder / "in" / f"noise-{i:02}.png").write_bytes(noise_image(i))
    (folder / "in" / "broken.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module")
def team_stack(chrome: Browser, places: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    settings = {"bulk_sources": places, "bulk_outputs": places / "out"}
    with stack(tmp_path_factory.mktemp("page"), **settings) as it:
        yield Team.start(it, 1)


@pytest.fixture
def team(team_stack: Team) -> Team:
    team_stack.heal()
    return team_stack


@pytest.fixture(scope="module")
def keyed(team_stack: Team, places: Path) -> Iterator[Api]:
    """An API that asks for a key and opens an output for search."""
    output = places / "out" / "photos"
    run = submit(team_stack.http, task="embed_dataset", source=str(places / "in"), output=str(output))
    assert ended(team_stack.http, run["id"], 240)["state"] == "succeeded"
    api = team_stack.another_api(api_keys=",".join(KEYS), search=f"photos={output}")
    yield api
    api.stop()


@pytest.fixture
def here(team: Team, visit: Callable[..., Watched]) -> Watched:
    return visit(team.api.url)


def give_key(page: Page, key: str) -> None:
    page.get_by_label("This service asks for a key.").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_many_pictures_become_a_job_with_its_result(here: Watched) -> None:
    page = here.page("jobs")
    expect(page.get_by_text("You have no jobs now").or_(page.locator("[data-job]").first)).to_be_visible()
    files = [(f"{i}.png", "image/png", noise_image(i)) for i in range(11)]
    give(page, "drop", *files, ("no picture.png", "image/png", b"no"))
    job = page.locator("[data-job]").first
    expect(job).to_contain_text("0.png and 11 more")
    expect(job.locator(".state")).to_have_text("succeeded")
    expect(job).to_contain_text("11 of 12 items done · 1 failed")
    with page.expect_download() as download:
        job.get_by_role("button", name="Result as JSON").click()
    result = json.loads(Path(download.value.path()).read_text())
    assert [row is None for row in result["embeddings"]] == [False] * 11 + [True]
    with page.expect_download() as download:
        job.get_by_role("button", name="Result as .npy").click()
    assert np.load(Path(download.value.path())).shape == (12, 128)
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    accessible(page)
    page.get_by_role("button", name="colours").click()
    accessible(page)


def test_a_job_is_followed_live_has_its_place_in_line_and_is_cancelled(here: Watched, team: Team) -> None:
    with team.busy() as running:
        waiting = submit_texts(team.http, "one that waits")
        page = here.page("jobs")
        job = page.locator(f"[data-job='{waiting}']")
        expect(job).to_contain_text("next in line")
        other = page.locator(f"[data-job='{running[0]}']")
        expect(other.locator(".state")).to_have_text("running")
        first = float(other.get_by_role("progressbar").evaluate("(bar) => bar.value"))
        wait_for(
            lambda: (
                page.wait_for_timeout(50) or other.get_by_role("progressbar").evaluate("(bar) => bar.value") > first
            ),
            WAIT,
            "progress",
        )
        # Nobody looks: the stream ends, because a browser has few connections for all tabs. Then it goes on.
        with page.expect_event("requestfailed", lambda request: request.url.endswith(f"/jobs/{running[0]}/events")):
            page.evaluate(HIDE, True)
        with page.expect_request(f"**/jobs/{running[0]}/events"):
            page.evaluate(HIDE, False)
        job.get_by_role("button", name="Cancel").click()
        expect(job.locator(".state")).to_have_text("cancelled")
        expect(job.get_by_role("button")).to_have_count(0)
    assert ended(team.http, waiting)["state"] == "cancelled"
    assert any(url.endswith(f"/jobs/{running[0]}/events") for url in here.requests)


def test_a_run_tells_its_speed_and_why_rows_failed(here: Watched, team: Team, places: Path) -> None:
    team.faults.delay(0.5)
    places = {"source": str(places / "in"), "output": str(places / "out" / "watched")}
    run = submit(team.http, task="embed_dataset", batch_size=2, shard_size=6, **places)["id"]
    page = here.page("jobs")
    job = page.locator(f"[data-job='{run}']")
    expect(job.locator(".state")).to_have_text("running")
    expect(job).to_contain_text(re.compile(r"\d+ of 53 rows done .* rows/s · .* to go"))
    expect(job).to_contain_text("Failed rows: 1 bad_image.")
    assert look(team.http, run)["state"] == "running"  # it is told while it goes on
    team.faults.clear()
    expect(job.locator(".state")).to_have_text("succeeded")
    expect(job).to_contain_text("52 of 53 rows done · 1 failed")
    expect(job).to_contain_text("Failed rows: 1 bad_image.")
    with page.expect_download() as download:
        job.get_by_role("button", name="Result as JSON").click()
    assert json.loads(Path(download.value.path()).read_text())["errors"]["bad_image"]["rows"] == 1
    expect(job.get_by_role("button")).to_have_count(1)


# Service


def test_the_service_is_well_and_shows_what_it_does(here: Watched, team: Team) -> None:
    assert team.http.post("/clip/embed_image", json={"image": {"type": "base64", "value": "AAAA"}}).status_code == 400
    page = here.page("service")
    expect(page.get_by_text("It is well.")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("bad_image 1"))).to_be_visible()
    worker = page.get_by_role("region", name="Workers").get_by_role("row").nth(1)
    expect(worker).to_contain_text("emoji-mini")
    fingerprint = ok(team.http.get("/model/registry"))["models"][0]["fingerprint"]
    expect(page.get_by_role("region", name="Models")).to_contain_text(fingerprint)
    full = page.get_by_role("list", name="How full it is")
    expect(full).to_contain_text(re.compile(r"Queue of jobs\s*0 of 4,096 items"))
    expect(full).to_contain_text(re.compile(r"Memory of the store\s*\d+ MiB, no limit set"))
    chart = page.get_by_role("img", name=re.compile("Requests and items, each second"))
    expect(chart.locator("path").first).to_have_attribute("d", re.compile("^M.*L"))
    later = here.page("service")  # a page that is opened later shows the minutes before it
    expect(later.get_by_role("row", name=re.compile("bad_image 1"))).to_be_visible()
    accessible(page)


def test_it_says_what_is_full(team: Team, visit: Callable[..., Watched]) -> None:
    api = team.another_api(max_queued_items=2300)
    with team.busy():
        page = visit(api.url).page("service")
        expect(page.get_by_text(re.compile(r"Queue of jobs: \d\d % full"))).to_be_visible()
    expect(page.get_by_text("It is well.")).to_be_visible()
    api.stop()


# Search


@pytest.fixture
def searching(keyed: Api, team: Team, visit: Callable[..., Watched]) -> Page:
    watched = visit(keyed.url)
    watched.expected = ("401", "400")
    page = watched.page("search")
    give_key(page, KEYS[0])
    expect(page.get_by_label("Search in")).to_contain_text("photos (52 rows, emoji-mini)")
    return page


def captions(page: Page) -> list[str]:
    return page.locator(".hits .caption").all_inner_texts()


def test_words_find_pictures_with_captions_scores_and_more_by_scrolling(searching: Page) -> None:
    page = searching
    page.set_viewport_size({"width": 700, "height": 500})
    page.get_by_label("for", exact=True).fill("a slice of pizza")
    page.keyboard.press("Enter")
    hits = page.locator(".hits li")
    expect(hits.first.locator(".caption")).to_have_text("pizza")
    expect(hits.first.get_by_role("img", name="pizza")).to_be_visible()
    assert hits.first.get_by_role("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    scores = [float(each) for each in page.locator(".hits .value").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.2
    expect(hits).to_have_count(24)
    page.get_by_role("button", name="More").scroll_into_view_if_needed()
    expect(hits).to_have_count(48)
    page.get_by_role("button", name="More").scroll_into_view_if_needed()
    expect(hits).to_have_count(52)
    expect(page.get_by_role("button", name="More")).to_be_hidden()
    expect(page.get_by_text("52 of 52 rows, nearest to “a slice of pizza”.")).to_be_visible()
    rows = [hit.get_attribute("data-row") for hit in hits.all()]
    assert len(set(rows)) == 52
    assert HOSTILE in captions(page)
    assert page.locator("main script, main img[src='x']").count() == 0
    for width in (360, 3840):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        accessible(page)
    page.get_by_role("button", name="colours").click()
    accessible(page)


def test_a_picture_and_a_hit_find_what_is_like_them(searching: Page) -> None:
    page = searching
    give(page, "drop", ("mine.png", "image/png", read("whale")))
    expect(page.locator(".hits .caption").first).to_have_text("whale")
    expect(page.get_by_text("rows, like “mine.png”.")).to_be_visible()
    page.get_by_role("button", name="Like this one: cat", exact=True).click()
    expect(page.get_by_text("rows, like “cat”.")).to_be_visible()
    expect(page.locator(".hits .caption").first).to_have_text("dog")  # the cat itself is left out
    assert "cat" not in captions(page)
    give(page, "paste", ("none.png", "image/png", b"none"))
    expect(page.locator("#part-search .note")).to_contain_text("Could not load input image")
    expect(page.locator(".hits li")).to_have_count(0)


def test_without_an_output_there_is_no_search(here: Watched) -> None:
    page = here.page("search")
    expect(page.get_by_text("No output is open for search")).to_be_visible()
    expect(page.get_by_role("link", name="Search")).to_be_hidden()


# What may go wrong


def test_an_open_page_goes_on_when_the_service_comes_back(here: Watched, team: Team) -> None:
    here.expected = AWAY
    page = here.page()
    sample(page, "dog")
    expect(best(page, "dog.png")).to_have_text("dog")
    banner = page.locator("#banner")
    team.api.kill()
    expect(banner).to_contain_text("The service does not answer.")
    page.get_by_label("Words, a line each").fill("puppy\ncar")
    team.api.start()
    team.stack.ready(team.api, timeout=START)
    expect(banner).to_be_hidden()
    expect(page.get_by_text("The service is well again.")).to_be_visible()
    expect(best(page, "dog.png")).to_have_text("puppy")
    team.workers[0].kill()
    expect(banner).to_contain_text("No live worker serves model 'emoji-mini'")
    team.heal()
    expect(banner).to_be_hidden()
    page.get_by_label("Words, a line each").fill("kitten\ndog")
    expect(best(page, "dog.png")).to_have_text("dog")


def test_a_store_that_is_away_is_told(here: Watched, team: Team) -> None:
    here.expected = AWAY
    page = here.page("service")
    expect(page.get_by_text("It is well.")).to_be_visible()
    team.stack.valkey.signal(signal.SIGSTOP)
    try:
        expect(page.locator("#banner")).to_contain_text("The service is not ready")
    finally:
        team.stack.valkey.signal(signal.SIGCONT)
    expect(page.get_by_text("It is well.")).to_be_visible()


@contextmanager
def full(api: Api, team: Team) -> Iterator[None]:
    """The lane of requests is full: one of four texts holds it, and its pass does not end."""
    over = threading.Event()

    def send() -> None:
        with api.client() as http:
            while not over.is_set():  # again, should it be too late before the test has seen what it looks for
                http.post("/clip/embed_text", json={"text": [uuid4().hex for _ in range(4)]})

    sender = threading.Thread(target=send)
    team.faults.hold()
    sender.start()
    try:
        with api.client() as http:
            wait_for(lambda: "queue_full" in http.get("/readiness").text, WAIT, "a full lane")
        yield
    finally:
        over.set()
        team.faults.clear()
        sender.join(WAIT)


def test_a_full_service_is_told_and_tried_again(team: Team, visit: Callable[..., Watched]) -> None:
    api = team.another_api(max_queued_items=3)
    watched = visit(api.url)
    watched.expected = AWAY
    page = watched.page()
    sample(page, "dog")
    expect(best(page, "dog.png")).to_have_text("dog")
    with full(api, team):
        page.get_by_label("Words, a line each").fill("puppy\ncar")
        note = page.locator("#part-try .note")
        expect(note).to_contain_text("It is tried again.")
        expect(note).to_contain_text("items of 'emoji-mini' are waiting")
    expect(best(page, "dog.png")).to_have_text("puppy")
    expect(note).to_be_hidden()
    page.goto("/#service")
    expect(page.get_by_text(re.compile(r"In the last minute \d+ requests were refused"))).to_be_visible()
    api.stop()


def test_two_keys_do_not_see_each_other(team: Team, keyed: Api, visit: Callable[..., Watched]) -> None:
    pages = []
    for key in KEYS:
        watched = visit(keyed.url)
        watched.expected = ("401",)
        page = watched.page("jobs")
        field = page.get_by_label("This service asks for a key.")
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_text("The service refused this key.")).to_be_visible()
        give_key(page, key)
        expect(page.get_by_text("You have no jobs now")).to_be_visible()
        expect(field).to_be_hidden()
        pages.append((watched, page))
    (first, one), (_, another) = pages
    give(one, "drop", ("mine.png", "image/png", noise_image(1)))
    job = one.locator("[data-job]").first
    expect(job.locator(".state")).to_have_text("succeeded")
    identity = job.get_attribute("data-job")
    another.goto("/#service")
    expect(another.get_by_text("It is well.")).to_be_visible()
    assert str(identity)[:8] not in another.content()
    another.goto("/#jobs")
    expect(another.get_by_text("You have no jobs now")).to_be_visible()
    # The same tab with the other key shows nothing of the first one's.
    one.get_by_role("button", name="Change key").click()
    give_key(one, KEYS[1])
    expect(one.get_by_text("You have no jobs now")).to_be_visible()
    assert str(identity)[:8] not in one.content()
    # The key is kept by the tab alone, and stands in no address.
    one.reload()
    expect(one.get_by_role("button", name="Change key")).to_be_visible()
    fresh = first.page()
    expect(fresh.get_by_label("This service asks for a key.")).to_be_visible()
    assert not [url for watched, _ in pages for url in watched.requests if "key-of" in url or "%C3" in url]
    assert first.context.cookies() == []
    assert "key-of" not in str(one.evaluate("JSON.stringify(localStorage)"))
