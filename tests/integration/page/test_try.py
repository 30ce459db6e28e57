"""Try in a real browser, before a real service with the shipped model."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright._impl._driver import compute_driver_executable
from playwright.sync_api import Page, Route, expect

from clip_queue.api.page import SAMPLES
from tests.browser import WAIT, Watched, accessible, best, card, give, read, sample
from tests.environments import program
from tests.harness import wait_for
from tests.images import base64_image, bomb, encoded, noise_image
from tests.wire import ok

pytestmark = pytest.mark.timeout(400)

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>'
HOSTILE = "<img src=x onerror=alert(3)>\"'`;$(touch pwned).png"


def values(page: Page, name: str, number: int) -> list[float]:
    """A picture's ``number`` values."""
    expect(card(page, name).locator(".value")).to_have_text([re.compile(r"^-?\d")] * number)
    return [float(each.split()[0].rstrip(",")) for each in card(page, name).locator(".value").all_inner_texts()]


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
    page.get_by_label("Words, a line each").fill("\n".join(f"thing {i}" for i in range(120)))
    expect(page.get_by_text("The first 100 lines are compared.")).to_be_visible()
    expect(card(page, "pizza.png").locator(".value")).to_have_count(100)
    page.get_by_role("button", name="Remove dog.png").click()
    expect(card(page, "dog.png")).to_have_count(0)
    expect(tables.nth(0).locator("tbody tr")).to_have_count(2)


def test_the_numbers_are_those_of_the_service(here: Watched, http: httpx.Client) -> None:
    page = here.page()
    sample(page, "cat")
    body = {"subject": base64_image(read("cat")), "prompt": ["dog", "cat", "pizza", "rocket"]}
    wanted = ok(http.post("/clip/compare", json=body))["similarity"]
    assert values(page, "cat.png", 4) == pytest.approx(wanted, abs=2e-3)


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


def copied(page: Page, language: str) -> str:
    """What the button copies."""
    page.get_by_label("As", exact=True).select_option(language)
    page.bring_to_front()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    page.locator("#said").evaluate("(place) => (place.textContent = '')")
    return str(page.evaluate("navigator.clipboard.readText()"))


def ran(folder: Path, *command: str) -> str:
    """What a program says that a person runs beside the pictures."""
    env = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def products(pictures: Any, texts: Any) -> Any:
    a, b = (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (pictures, texts))
    return a @ b.T


def test_the_copied_code_does_the_same(here: Watched, tmp_path: Path) -> None:
    here.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = here.page()
    names = ["it's a dog.png", "-pizza $HOME.png", "no picture.png"]
    content = [read("dog"), read("pizza"), b"none"]
    for name, data in zip(names, content, strict=True):
        (tmp_path / name).write_bytes(data)
    give(page, "drop", *((name, "image/png", data) for name, data in zip(names, content, strict=True)))
    page.get_by_label("Words, a line each").fill('dog\nit\'s "pizza" \\ $HOME\nünïcödé 🍕')
    wanted = pytest.approx(np.array([values(page, name, 3) for name in names[:2]]), abs=2e-3)
    expect(card(page, names[2]).locator(".bad")).to_be_visible()  # it is not in the code: the others would fail with it
    page.get_by_text("The same from your own program").click()

    said = ran(tmp_path, sys.executable, "-c", copied(page, "Python") + "\nprint((images @ texts.T).tolist())")
    assert np.array(json.loads(said.splitlines()[-1])) == wanted

    first, _, second = ran(tmp_path, "bash", "-c", copied(page, "curl")).partition("}{")
    found = json.loads(first + "}")["embeddings"], json.loads("{" + second)["embeddings"]
    assert products(*found) == wanted

    code = copied(page, "Python, openai") + "\nprint([each.embedding for each in answer.data])"
    rows = json.loads(ran(tmp_path, program("clients", "CLIENTS_PYTHON"), "-c", code).splitlines()[-1])
    assert np.array(rows[:2]) @ np.array(rows[2:]).T == wanted

    code = re.sub(
        r"^console\.log\((.*)\);$", r"console.log(JSON.stringify(\1));", copied(page, "JavaScript"), flags=re.MULTILINE
    )
    found = ran(tmp_path, compute_driver_executable()[0], "--input-type=module", "-e", code).splitlines()
    assert products(*map(json.loads, found)) == wanted


def test_code_for_words_alone_and_with_a_key_runs_too(here: Watched, tmp_path: Path) -> None:
    here.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = here.page()
    page.evaluate("sessionStorage.setItem('clip-queue-key', 'a key')")
    page.reload()
    page.get_by_label("Words, a line each").fill("dog")
    page.get_by_text("The same from your own program").click()
    expect(page.get_by_role("region", name="Code")).to_contain_text("YOUR-KEY")
    for language, command in {
        "Python": (sys.executable, "-c"),
        "curl": ("bash", "-c"),
        "Python, openai": (program("clients", "CLIENTS_PYTHON"), "-c"),
        "JavaScript": (compute_driver_executable()[0], "--input-type=module", "-e"),
    }.items():
        code = copied(page, language)
        assert "YOUR-KEY" in code
        assert "a key" not in code  # it is nobody's to see over a shoulder, or in a chat
        assert ran(tmp_path, *command, code).count(".") >= 100, language  # Node leaves some numbers out


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
        ("large.png", "image/png", bomb(7_000, 7_000)),  # 49 megapixels: the most that the service takes
    )
    page.get_by_label("Words, a line each").fill(f"<script>alert(5)</script>\n{'long ' * 300}\ndog")
    expect(best(page, HOSTILE)).to_have_text("dog")
    expect(best(page, "large.png")).to_have_count(1)
    expect(card(page, "huge.png").locator(".bad")).to_contain_text("million pixels; the service takes 50.0")
    for name in ("drawing.svg", "page.png", "empty.png"):
        expect(card(page, name).locator(".bad")).to_contain_text("Could not load input image")
    expect(card(page, HOSTILE)).to_contain_text("<script>alert(5)</script>")
    expect(card(page, HOSTILE)).to_contain_text("Text input is too long")
    assert page.locator("main script, main iframe, main img[src='x']").count() == 0
    accessible(page)


def large(what: str) -> Image.Image:
    """1600 × 1600 pixels."""
    if what == "lines":  # a shrinking that leaves pixels out makes other lines of them
        image = Image.new("RGB", (1600, 1600), "white")
        draw = ImageDraw.Draw(image)
        for i in range(0, 1600, 9):
            draw.line((i, 0, 1600 - i, 1600), fill=(i % 255, 3 * i % 255, 7 * i % 255), width=2)
        return image
    dog = Image.open(io.BytesIO(read("dog"))).convert("RGB").resize((1600, 1600), Image.Resampling.BICUBIC)
    return Image.blend(dog, Image.open(io.BytesIO(noise_image(1, (1600, 1600)))), 0.2)


@pytest.mark.parametrize(("what", "kind"), [("dog", "jpeg"), ("dog", "png"), ("lines", "jpeg")])
def test_a_large_picture_is_sent_smaller_with_nearly_the_same_vector(here: Watched, what: str, kind: str) -> None:
    page = here.page()
    sizes, vectors = [], []

    def note(response: Any) -> None:
        if response.url.endswith("/clip/embed_image"):
            sizes.append(len(response.request.post_data or ""))
            vectors.append(response.json()["embeddings"][0])

    page.on("response", note)
    give(page, "drop", ("large", f"image/{kind}", encoded(large(what), kind)))
    values(page, "large", 4)
    page.locator("#part-try").get_by_label("Make large pictures smaller").uncheck()
    wait_for(lambda: page.wait_for_timeout(50) or len(vectors) == 2, WAIT, "the picture as it is")
    a, b = (np.array(vector) / np.linalg.norm(vector) for vector in vectors)
    print(f"{what}: cosine of the smaller {kind} to the whole: {a @ b:.5f}; bytes {sizes}")
    assert sizes[0] < sizes[1] / 3
    assert a @ b > 0.999  # 0.999, as the page says


def test_another_model_is_asked_by_its_name(here: Watched) -> None:
    """The browser is told of a second model, which the service then does not know: its answer is shown."""

    def second(route: Route) -> None:
        response = route.fetch()
        found = response.json()
        found["models"].append({**found["models"][0], "name": "second", "default": False, "notice": None})
        route.fulfill(response=response, json=found)

    here.expected = ("404",)
    here.context.route("**/status?*", second)
    page = here.page()
    sample(page, "dog")
    expect(best(page, "dog.png")).to_have_text("dog")
    with page.expect_request("**/clip/embed_text") as asked:
        page.get_by_label("Model", exact=True).select_option("second")
    assert asked.value.post_data_json["clip_version_id"] == "second"
    expect(page.locator("#part-try .note")).to_contain_text("'second'")
    page.get_by_text("The same from your own program").click()
    expect(page.get_by_role("region", name="Code")).to_contain_text('"clip_version_id": "second"')
    page.get_by_label("Model", exact=True).select_option("emoji-mini")
    expect(best(page, "dog.png")).to_have_text("dog")
    expect(page.get_by_text("emoji-mini (shipped:emoji-mini) sees 64 × 64 pixels")).to_be_visible()
