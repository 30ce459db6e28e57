"""A real browser, and what no page may do in it: complain, or ask anybody but its service."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from clip_queue.api.page import SAMPLES

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 90.0  # seconds that a page may take for anything on a loaded machine
# The camera is Chromium's own test picture, and is allowed without a question.
OPTIONS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def program() -> str:
    """The browser. Without one the test is skipped, but in continuous integration it fails."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = "no Chromium here (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    path = program()
    expect.set_options(timeout=WAIT * 1000)
    with sync_playwright() as playwright:
        it = playwright.chromium.launch(executable_path=path, args=list(OPTIONS), timeout=WAIT * 1000)
        try:
            yield it
        finally:
            it.close()


class Watched:
    """A context of a browser, with what its pages have complained of and whom they have asked."""

    def __init__(self, it: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.context: BrowserContext = it.new_context(base_url=url, **options)
        self.context.set_default_timeout(WAIT * 1000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.expected: tuple[str, ...] = ()  # parts of complaints that the test has caused
        self.context.on("console", lambda said: self._note(said.type, said.text, said.location.get("url", "")))
        self.context.on("weberror", lambda error: self.complaints.append(f"error: {error.error}"))
        self.context.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.context.on("request", lambda request: self.requests.append(request.url))

    def _note(self, kind: str, text: str, url: str) -> None:
        if kind in ("error", "warning") and not any(part in text for part in self.expected):
            self.complaints.append(f"{kind}: {text} {url}")

    def page(self, part: str = "try") -> Page:
        page = self.context.new_page()
        page.goto(f"/#{part}")
        page.locator(f"#part-{part} h2").wait_for()  # it listens to what is dropped from now on
        return page

    def close(self) -> None:
        self.context.close()

    def check(self) -> None:
        assert self.complaints == [], self.complaints  # this file's assertions are not rewritten
        elsewhere = [url for url in self.requests if not url.startswith((f"{self.url}/", "blob:", "data:"))]
        assert elsewhere == [], elsewhere


def accessible(page: Page) -> None:
    """No violation of axe's rules."""
    found = Axe().run(page).response["violations"]
    assert not found, [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]


# A file as a person drops or pastes it: the page gets the same events.
DROP = """([kind, files]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], name, { type }));
  }
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: data })
    : new DragEvent("drop", { ...options, dataTransfer: data });
  document.body.dispatchEvent(event);
}"""

# A tab goes to the background, or comes back.
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def give(page: Page, kind: str, *files: tuple[str, str, bytes]) -> None:
    """Drop or paste files: (name, type, content)."""
    page.evaluate(DROP, [kind, [[name, type, base64.b64encode(data).decode()] for name, type, data in files]])


def sample(page: Page, *names: str) -> None:
    """Click samples."""
    for name in names:
        page.get_by_role("button", name=f"Sample: {name}", exact=True).click()


def card(page: Page, name: str) -> Locator:
    """A picture of Try, with its bars."""
    return page.locator("#part-try .cards > li").filter(has=page.get_by_role("heading", name=name, exact=True))


def best(page: Page, name: str) -> Locator:
    """The word that is marked as the best for a picture."""
    return card(page, name).locator(".best .word")


def read(name: str) -> bytes:
    """A sample's content."""
    return (SAMPLES / f"{name}.png").read_bytes()
