"""The page in a real browser, before a real service with the shipped model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from clip_queue.api.page import SAMPLES
from tests.browser import DROP, WAIT, Watched, accessible, browser
from tests.harness import stack, wait_for
from tests.images import base64_image, bomb, encoded, noise_image
from tests.jobs_api import ended, submit_texts
from tests.team import Team
from tests.wire import ok

pytestmark = pytest.mark.timeout(400)

KEYS = ("key-of-öne", "key-of-another")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>'
HOSTILE = "<img src=x onerror=alert(3)>\"'`;$(touch pwned).png"
FCP = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
AWAY = ("Failed to load resource", "net::ERR")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as it:
        yield it


@pytest.fixture(scope="module")
def team_stack(chrome: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with stack(tmp_path_factory.mktemp("page")) as it:
        yield Team.start(it, 1)


@pytest.fixture
def team(team_stack: Team) -> Team:
    team_stack.heal()
    return team_stack


@pytest.fixture(scope="module")
def keyed(team_stack: Team) -> Iterator[str]:
    """The address of an API that asks for a key."""
    api = team_stack.another_api(api_keys=",".join(KEYS))
    yield api.url
    api.stop()


@pytest.fixture
def visit(chrome: Browser) -> Iterator[Callable[..., Watched]]:
    """Makes contexts of the browser, each of which is looked at when the test ends."""
    made: list[Watched] = []

    def visit(url: str, **options: Any) -> Watched:
        made.append(Watched(chrome, url, **options))
        return made[-1]

    yield visit
    for each in made:
        each.close()
    for each in made:
        each.check()


@pytest.fixture
def here(team: Team, visit: Callable[..., Watched]) -> Watched:
    return visit(team.api.url)


def sample(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_role("button", name=f"Sample: {name}", exact=True).click()


def card(page: Page, name: str) -> Any:
    return page.locator("#part-try .cards > li").filter(has=page.get_by_role("heading", name=name, exact=True))


def best(page: Page, name: str) -> Any:
    return card(page, name).locator(".best .word")


def give(page: Page, kind: str, *files: tuple[str, str, bytes]) -> None:
    """Drop or paste files."""
    page.evaluate(DROP, [kind, [[n, t, base64.b64encode(data).decode()] for n, t, data in files]])


def read(name: str) -> bytes:
    return (SAMPLES / f"{name}.png").read_bytes()


def cosines(page: Page, name: str) -> list[float]:
    expect(best(page, name)).to_have_count(1)
    return [float(each.split()[0].rstrip(",")) for each in card(page, name).locator(".value").all_inner_texts()]


# Try


def test_samples_and_words_are_compared_at_once(here: Watched) -> None:
    page = here.page()
    expect(page.get_by_text("emoji-mini knows emoji pictures")).to_be_visible()
    sample(page, "dog", "pizza", "rocket")
    for name in ("dog", "pizza", "rocket"):
        expect(best(page, f"{name}.png")).to_have_text(name)
    page.get_by_label("Words, a line each").fill("cat\npizza")
    expect(best(page, "dog.png")).to_have_text("cat")
    tables = page.locator("#part-try table")
    expect(tables).to_have_count(2)
    expect(tables.nth(0).locator("tbody tr")).to_have_count(3)
    expect(tables.nth(0).locator("thead th")).to_have_text(["Picture", "cat", "pizza"])
    assert [tables.nth(1).locator("tbody tr").nth(i).locator("td").nth(i).inner_text() for i in range(3)] == [
        "1.000"
    ] * 3
    page.get_by_label("Show shares").check()
    shares = [float(each.split()[0]) for each in card(page, "pizza.png").locator(".value").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares[1] > 90
    expect(page.get_by_text("times 25.2, the model's own scale")).to_be_visible()
    expect(page.get_by_text("Time of the last request")).to_be_visible()
    assert len(page.locator("#part-try .stages span").all()) == 5
    page.get_by_role("button", name="Remove dog.png").click()
    expect(card(page, "dog.png")).to_have_count(0)
    expect(tables.nth(0).locator("tbody tr")).to_have_count(2)


def test_the_numbers_are_those_of_the_service(here: Watched, team: Team) -> None:
    page = here.page()
    sample(page, "cat")
    body = {"subject": base64_image(read("cat")), "prompt": ["dog", "cat", "pizza", "rocket"]}
    wanted = ok(team.http.post("/clip/compare", json=body))["similarity"]
    assert cosines(page, "cat.png") == pytest.approx(wanted, abs=2e-3)


def test_pictures_are_dropped_pasted_and_picked(here: Watched) -> None:
    here.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = here.page()
    give(page, "drop", ("one.png", "image/png", read("dog")), ("two.png", "image/png", read("pizza")))
    expect(best(page, "two.png")).to_have_text("pizza")
    expect(best(page, "one.png")).to_have_text("dog")
    page.locator("#part-try .file").set_input_files([SAMPLES / "rocket.png"])
    expect(best(page, "rocket.png")).to_have_text("rocket")
    give(page, "paste", ("three.png", "image/png", read("cat")))
    expect(best(page, "three.png")).to_have_text("cat")
    write = """async (content) => {
      const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
      const item = new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) });
      await navigator.clipboard.write([item]);
    }"""
    page.bring_to_front()
    page.evaluate(write, base64.b64encode(read("dog")).decode())
    page.get_by_role("heading", name="clip-queue").click()
    page.keyboard.press("Control+V")
    expect(best(page, "image.png")).to_have_text("dog")


def test_the_camera_gives_a_picture(here: Watched) -> None:
    page = here.page()
    page.locator("#part-try").get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take the picture").click()
    expect(card(page, "camera.jpg").locator(".value")).to_have_count(4)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_copied_code_does_the_same(here: Watched, team: Team, tmp_path: Path) -> None:
    here.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = here.page()
    names = ["it's a dog.png", "-pizza $HOME.png"]
    give(page, "drop", *((name, "image/png", read(part)) for name, part in zip(names, ("dog", "pizza"), strict=True)))
    page.get_by_label("Words, a line each").fill('dog\nit\'s "pizza" \\ $HOME\nünïcödé 🍕')
    wanted = [cosines(page, name) for name in names]
    for name, part in zip(names, ("dog", "pizza"), strict=True):
        (tmp_path / name).write_bytes(read(part))
    page.get_by_text("The same from your own program").click()

    def copied(language: str) -> str:
        page.get_by_label("As", exact=True).select_option(language)
        page.bring_to_front()
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_text("Copied.")).to_be_visible()
        return str(page.evaluate("navigator.clipboard.readText()"))

    def ran(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = ran(sys.executable, "-c", copied("Python") + "\nprint(np.round(images @ texts.T, 4).tolist())")
    assert json.loads(said.splitlines()[-1]) == pytest.approx(np.array(wanted), abs=2e-3)
    if shutil.which("curl"):
        code = copied("curl")
        assert len(code.splitlines()) > 3
        first, _, second = ran("bash", "-c", code).partition("}{")
        pictures = np.array(json.loads(first + "}")["embeddings"])
        texts = np.array(json.loads("{" + second)["embeddings"])
        pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        assert pictures @ texts.T == pytest.approx(np.array(wanted), abs=2e-3)
    if node := shutil.which("node"):
        assert "128" in ran(node, "--input-type=module", "-e", copied("JavaScript"))
    assert "client.embeddings.create" in copied("Python, openai")


def test_nothing_that_is_hostile_does_anything(here: Watched) -> None:
    page = here.page()
    give(
        page,
        "drop",
        (HOSTILE, "image/png", read("dog")),
        ("drawing.svg", "image/svg+xml", SVG),
        ("page.png", "image/png", b"<!doctype html><script>alert(4)</script>"),
        ("huge.png", "image/png", bomb()),
        ("empty.png", "image/png", b""),
    )
    page.get_by_label("Words, a line each").fill(f"<script>alert(5)</script>\n{'long ' * 300}\ndog")
    expect(best(page, HOSTILE)).to_have_text("dog")
    expect(card(page, "huge.png").locator(".bad")).to_contain_text("million pixels; the service takes 50.0")
    for name in ("drawing.svg", "page.png", "empty.png"):
        expect(card(page, name).locator(".bad")).to_contain_text("Could not load input image")
    expect(card(page, HOSTILE)).to_contain_text("<script>alert(5)</script>")
    expect(card(page, HOSTILE)).to_contain_text("Text input is too long")
    assert page.locator("main script, main iframe, main img[src='x']").count() == 0
    accessible(page)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_large_picture_is_sent_smaller_with_nearly_the_same_vector(here: Watched, kind: str) -> None:
    page = here.page()
    sizes, vectors = [], []

    def note(response: Any) -> None:
        if response.url.endswith("/clip/embed_image"):
            sizes.append(len(response.request.post_data or ""))
            vectors.append(response.json()["embeddings"][0])

    page.on("response", note)
    dog = Image.open(io.BytesIO(read("dog"))).convert("RGB").resize((1600, 1600), Image.Resampling.BICUBIC)
    noise = Image.open(io.BytesIO(noise_image(1, (1600, 1600))))
    data = encoded(Image.blend(dog, noise, 0.2), kind)
    give(page, "drop", ("large", f"image/{kind}", data))
    cosines(page, "large")
    page.get_by_label("Make large pictures smaller before they are sent").uncheck()
    wait_for(lambda: page.wait_for_timeout(50) or len(vectors) == 2, WAIT, "the picture as it is")
    a, b = (np.array(vector) / np.linalg.norm(vector) for vector in vectors)
    print(f"cosine of the smaller {kind} to the whole: {a @ b:.5f}; bytes {sizes}")
    assert sizes[0] < sizes[1] / 3
    assert a @ b > 0.99


# Jobs


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
        job.get_by_role("button", name="Cancel").click()
        expect(job.locator(".state")).to_have_text("cancelled")
        expect(job.get_by_role("button")).to_have_count(0)
    assert ended(team.http, waiting)["state"] == "cancelled"
    assert any(url.endswith(f"/jobs/{running[0]}/events") for url in here.requests)


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
    expect(banner).to_be_hidden()
    expect(page.get_by_text("The service is well again.")).to_be_visible()
    expect(best(page, "dog.png")).to_have_text("puppy")
    team.workers[0].kill()
    expect(banner).to_contain_text("No live worker serves model 'emoji-mini'")
    team.workers[0].start()
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


def test_a_full_service_is_told_and_tried_again(team: Team, visit: Callable[..., Watched]) -> None:
    api = team.another_api(max_queued_items=1)
    watched = visit(api.url)
    watched.expected = AWAY
    page = watched.page()
    expect(page.locator("#part-try .note")).to_contain_text("It is tried again.")
    page.get_by_label("Words, a line each").fill("dog")
    expect(page.locator("#part-try .note")).to_be_hidden()
    sample(page, "dog")
    expect(card(page, "dog.png").locator(".value")).to_have_count(1)
    api.stop()


def test_two_keys_do_not_see_each_other(team: Team, keyed: str, visit: Callable[..., Watched]) -> None:
    pages = []
    for key in KEYS:
        watched = visit(keyed)
        watched.expected = ("401",)
        page = watched.page("jobs")
        field = page.get_by_label("This service asks for a key.")
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_text("The service refused this key.")).to_be_visible()
        field.fill(key)
        page.get_by_role("button", name="Use this key").click()
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
    one.get_by_label("This service asks for a key.").fill(KEYS[1])
    one.get_by_role("button", name="Use this key").click()
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


# For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(team: Team, visit: Callable[..., Watched], scheme: Any) -> None:
    page = visit(team.api.url, color_scheme=scheme).page()
    sample(page, "dog", "pizza")
    expect(best(page, "pizza.png")).to_have_text("pizza")
    page.get_by_text("The same from your own program").click()
    for part in ("try", "jobs", "service"):
        page.goto(f"/#{part}")
        expect(page.locator(f"#part-{part} h2")).to_be_visible()
        if part == "service":
            expect(page.get_by_text("It is well.")).to_be_visible()
        accessible(page)
        for width in (360, 3840):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (part, width)
    page.get_by_role("button", name="colours").click()
    other = {"light": "dark", "dark": "light"}[scheme]
    assert page.evaluate("document.documentElement.dataset.theme") == other
    accessible(page)
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == other


def test_the_keyboard_is_enough(here: Watched) -> None:
    page = here.page()
    expect(page.get_by_role("button", name="Sample: dog")).to_be_visible()

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = "(document.activeElement.ariaLabel || document.activeElement.innerText || '').trim()"
            if page.evaluate(focused) == name:
                return
        raise AssertionError(f"no Tab leads to {name!r}")

    tab_to("Sample: dog")
    page.keyboard.press("Enter")
    expect(best(page, "dog.png")).to_have_text("dog")
    tab_to("Remove dog.png")
    page.keyboard.press("Enter")
    expect(card(page, "dog.png")).to_have_count(0)
    tab_to("Service")
    page.keyboard.press("Enter")
    expect(page.get_by_text("It is well.")).to_be_visible()
    expect(page.get_by_role("link", name="Service")).to_have_attribute("aria-current", "page")


def test_it_is_painted_at_once(here: Watched, team: Team) -> None:
    page = here.page()
    expect(page.get_by_role("button", name="Sample: dog")).to_be_visible()
    painted = wait_for(lambda: page.wait_for_timeout(50) or page.evaluate(FCP), WAIT, "the first paint")
    print(f"first paint after {painted:.0f} ms")
    assert painted < 1500, "300 on a machine that does nothing else"
    own = [url for url in here.requests if "/page/" in url and "/samples/" not in url]
    assert len(own) == len(set(own))
    total = sum(len(httpx.get(url, trust_env=False).content) for url in [*own, f"{team.api.url}/docs"][:-1])
    assert total < 100_000


def test_a_page_without_a_network_of_its_own_needs_none(here: Watched) -> None:
    """Behind a path of a proxy, too: every address is relative to the page's own."""
    page = here.page()
    found = page.evaluate(
        "[...document.querySelectorAll('link, script')].map((it) => it.getAttribute('href') ?? it.src)"
    )
    assert found
    assert not [each for each in found if each.startswith("//")]
    with contextlib.suppress(AssertionError):
        time.sleep(0)
