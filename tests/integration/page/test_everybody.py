"""That everybody can use the page: light and dark, small and large, by keyboard, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Route, expect

from tests.browser import HIDE, WAIT, Watched, accessible, best, card, sample
from tests.harness import Api, Stack, wait_for

pytestmark = pytest.mark.timeout(400)

PARTS = ("try", "jobs", "service")  # the search has its own tests
FCP = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(served: tuple[Stack, Api], visit: Callable[..., Watched], scheme: Any) -> None:
    page = visit(served[1].url, color_scheme=scheme).page()
    sample(page, "dog", "pizza")
    expect(best(page, "pizza.png")).to_have_text("pizza")
    page.get_by_text("The same from your own program").click()
    for part in PARTS:
        page.goto(f"/#{part}")
        expect(page.locator(f"#part-{part} h2")).to_be_visible()
        if part == "service":
            expect(page.get_by_text("It is well.")).to_be_visible()
        for width in (360, 3840, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate(FITS), (part, width)
            accessible(page)
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
    tab_to("The same from your own program")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Code")).to_be_visible()
    tab_to("Service")
    page.keyboard.press("Enter")
    expect(page.get_by_text("It is well.")).to_be_visible()
    expect(page.get_by_role("link", name="Service")).to_have_attribute("aria-current", "page")


def test_it_is_painted_at_once(served: tuple[Stack, Api], visit: Callable[..., Watched]) -> None:
    times = []
    for _ in range(3):  # the best of three: other tests run beside this one
        here = visit(served[1].url)
        page = here.page()
        times.append(wait_for(lambda page=page: page.evaluate(FCP), WAIT, "the first paint"))
    own = {url for url in here.requests if "/page/" in url and "/samples/" not in url}
    assert {f"{here.url}/page/{name}" for name in ("style.css", "page.js", "try.js")} < own
    sent = httpx.get(here.url, headers={"Accept": "text/html"}, trust_env=False).content
    total = len(sent) + sum(len(httpx.get(url, trust_env=False).content) for url in own)
    print(f"first paint after {[round(each) for each in times]} ms, {total:,} bytes")
    assert min(times) < 1500, "300 ms on a machine that does nothing else"
    assert total < 100_000


def test_it_works_under_a_path_of_a_proxy(here: Watched) -> None:
    def forward(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/under/a/path/", "/")))

    here.context.route("**/under/a/path/**", forward)
    page = here.context.new_page()
    page.goto("/under/a/path/#try")
    sample(page, "dog")
    expect(best(page, "dog.png")).to_have_text("dog")
    page.get_by_role("link", name="Service").click()
    expect(page.get_by_text("It is well.")).to_be_visible()
    assert [url for url in here.requests if "/under/a/path/" not in url] == []


def test_nothing_is_asked_for_by_who_does_not_look(here: Watched) -> None:
    """A tab in the background is silent; when it is seen again it looks at once."""
    page = here.page("service")
    expect(page.get_by_text("It is well.")).to_be_visible()
    page.evaluate(HIDE, True)
    before = len(here.requests)
    page.wait_for_timeout(4500)  # two intervals
    assert len(here.requests) == before
    with page.expect_request("**/status?*"):
        page.evaluate(HIDE, False)
