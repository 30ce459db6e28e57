"""The page's pictures in the README: ``make screenshots`` (``python -m tests.screenshots [FOLDER]``).

A real service with the shipped model is given work for two minutes, then Try and Service are photographed, light and
dark. The files have few colours, so that they are small.
"""

from __future__ import annotations

import argparse
import base64
import io
import socket
import tempfile
import threading
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Route, expect

from clip_queue.api.page import SAMPLES
from tests.browser import Watched, best, browser, sample
from tests.harness import ROOT, Api, stack
from tests.images import base64_image

SIZE = {"width": 1200, "height": 1150}
SECONDS = 120.0  # of work, so that the charts have something to show
SCHEMES: tuple[Any, ...] = ("light", "dark")
SHOWN = ("dog", "pizza", "rocket", "cat")
COLOURS = 256


def work(api: Api, over: threading.Event) -> None:
    """Requests and jobs, now more and now fewer, and here and there a bad one."""
    pictures = [base64_image(path.read_bytes()) for path in sorted(SAMPLES.glob("*.png"))]
    with api.client() as http:
        for turn in cycle(range(60)):
            if over.wait(0.05 + 0.01 * abs(turn - 30)):
                return
            http.post("/clip/embed_image", json={"image": pictures[turn % 5 : turn % 5 + 1 + turn % 8]})
            http.post("/clip/embed_text", json={"text": [f"thing {turn} {i}" for i in range(turn)] or "thing"})
            if turn % 20 == 0:
                job = http.post("/jobs", json={"task": "embed_image", "image": pictures * 20}).json()
            if turn == 40:
                bad = {"type": "base64", "value": base64.b64encode(b"no image").decode()}
                http.post("/clip/embed_image", json={"image": bad})
            if turn == 59:
                http.get(f"/jobs/{job['id']}", params={"wait": 10})


def nameless(route: Route) -> None:
    """The service's status without the name of the machine that it runs on."""
    response = route.fetch()
    route.fulfill(response=response, body=response.text().replace(socket.gethostname(), "worker-1"))


def photograph(chrome: Browser, url: str, folder: Path) -> None:
    for scheme in SCHEMES:
        watched = Watched(chrome, url, color_scheme=scheme, viewport=SIZE)
        watched.context.route("**/status*", nameless)
        page = watched.page()
        sample(page, *SHOWN)
        for name in SHOWN:
            expect(best(page, f"{name}.png")).to_have_text(name)
        page.mouse.move(0, 0)
        save(page.screenshot(), folder / f"try-{scheme}.png")
        page.goto("/#service")
        expect(page.get_by_text("It is well.")).to_be_visible()
        expect(page.locator(".chart path").first).to_be_attached()
        save(page.screenshot(), folder / f"service-{scheme}.png")
        watched.close()
        watched.check()


def save(data: bytes, path: Path) -> None:
    image = Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "screenshots")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of work before (%(default)s)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with browser() as chrome, tempfile.TemporaryDirectory() as folder, stack(Path(folder)) as it:
        worker, api = it.worker(), it.api()
        it.ready(worker, api)
        over = threading.Event()
        working = threading.Thread(target=work, args=(api, over), name="work")
        working.start()
        try:
            over.wait(arguments.seconds)
            photograph(chrome, api.url, arguments.folder)
        finally:
            over.set()
            working.join(60)


if __name__ == "__main__":
    main()
