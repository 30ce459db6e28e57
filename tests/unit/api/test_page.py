"""``GET /`` and the page's files: who gets what, with which headers."""

from __future__ import annotations

import pytest

from clip_queue.api.page import SAMPLES, STATIC, load
from clip_queue.version import __version__

from .service import serve

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
MOST = 1500  # lines of HTML, CSS and JavaScript
FIRST_PAINT = 100_000  # bytes


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/html;q=0.9, application/json;q=0.5", True),
        ("TEXT/HTML", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/json, text/html;q=0.5", False),
        ("text/html, application/json", False),
        ("text/html;q=nonsense", False),
        ("text/html;q=0", False),
    ],
)
async def test_the_root_is_html_for_who_asks_for_html(accept: str, html: bool) -> None:
    async with serve() as service:
        response = await service.http.get("/", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["vary"] == "Accept"
    if html:
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.text.startswith("<!doctype html>")
    else:
        assert response.json() == {"name": "clip-queue", "version": __version__, "docs": "/docs"}


async def test_it_can_be_turned_off() -> None:
    async with serve(page=False) as service:
        response = await service.http.get("/", headers={"Accept": BROWSER})
        assert response.json()["name"] == "clip-queue"
        assert (await service.http.get("/page/style.css")).status_code == 404


async def test_its_files_are_kept_and_asked_for_again() -> None:
    async with serve() as service:
        for path in ("/", *(f"/page/{name}" for name in load())):
            first = await service.http.get(path, headers={"Accept": BROWSER})
            assert first.status_code == 200, path
            assert first.headers["cache-control"] == "no-cache"
            again = {"Accept": BROWSER, "If-None-Match": first.headers["etag"]}
            later = await service.http.get(path, headers=again)
            assert (later.status_code, later.content) == (304, b"")
            head = await service.http.head(path, headers={"Accept": BROWSER})
            assert (head.status_code, head.headers["content-type"]) == (200, first.headers["content-type"])


async def test_it_says_what_the_browser_may_do_and_sets_no_cookie() -> None:
    async with serve(api_keys="a key") as service:
        for path in ("/", "/page/page.js", "/page/samples/dog.png"):
            headers = (await service.http.get(path, headers={"Accept": BROWSER})).headers
            policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["form-action"] == "'none'"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "set-cookie" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/samples/../../../pyproject.toml",
        "/page/samples/%2e%2e%2f%2e%2e%2fsettings.py",
        "/page//etc/passwd",
        "/page/samples/ATTRIBUTION.md",
    ],
)
async def test_nothing_else_is_served(path: str) -> None:
    async with serve() as service:
        response = await service.http.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"message", "code"}


async def test_types_are_right() -> None:
    async with serve() as service:
        types = {
            path: (await service.http.get(f"/page/{path}")).headers["content-type"]
            for path in ("style.css", "page.js", "icon.svg", "samples/samples.json", "samples/dog.png")
        }
    assert list(types.values()) == [
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
        "image/svg+xml",
        "application/json",
        "image/png",
    ]


def test_it_is_small_and_has_nothing_inline_or_from_elsewhere() -> None:
    files = {path.name: path.read_text() for path in STATIC.iterdir()}
    assert sum(text.count("\n") for text in files.values()) < MOST
    assert sum(map(len, files.values())) < FIRST_PAINT
    page = files["index.html"]
    assert not any(mark in page for mark in ("<style", "style=", " onclick", "<script>", "javascript:", "//"))
    for name, text in files.items():
        code = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in code, name
        assert "https://" not in code, name
        assert not any(word in code for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))
    assert (SAMPLES / "samples.json").is_file()
