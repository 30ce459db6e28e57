"""Whatever a client sends: nothing makes a 5xx, nothing harms a neighbour, the worker goes on."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.harness import Api, Stack
from tests.images import base64_image, encoded, noise_image
from tests.reference import Reference
from tests.wire import embed_images, embed_texts, refused, same, vectors

FUZZ = 500  # requests
SEED = 20_261
SECRET = "k3y-that-nobody-may-read"

JPEG = noise_image(7, size=(640, 480), format="JPEG")
TRUNCATED = JPEG[: len(JPEG) // 2]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_truncated_jpeg_beside_good_ones_is_named_and_the_worker_goes_on(
    served: tuple[Stack, Api], http: httpx.Client, reference: Reference, at: int
) -> None:
    pids = served[0].workers()
    good = [noise_image(seed) for seed in range(3)]
    answer = refused(embed_images(http, [*good[:at], TRUNCATED, *good[at:]]), 400)
    assert answer["index"] == at
    assert answer["message"].startswith("Could not load input image. Cause: Data is not image")
    same(vectors(embed_images(http, good)), reference.images(good))
    assert served[0].workers() == pids


def test_a_truncated_jpeg_is_not_filled_up_with_grey(http: httpx.Client) -> None:
    # Pillow can be told to load what is there; a vector of half an image would be a silent lie.
    for part in (len(JPEG) - 200, len(JPEG) // 10, 30):
        refused(embed_images(http, [JPEG[:part]]), 400)


def broken_images() -> dict[str, bytes]:
    image = Image.open(io.BytesIO(noise_image(1)))
    files = {f: encoded(image, f) for f in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG")}
    out = {f"half a {name}": data[: len(data) // 2] for name, data in files.items()}
    out |= {f"the first 12 bytes of a {name}": data[:12] for name, data in files.items()}
    png = files["PNG"]
    out["PNG of no width"] = png[:16] + bytes(4) + png[20:]
    out["PNG of a negative height"] = png[:20] + b"\xff\xff\xff\xff" + png[24:]
    out["PNG with a wrong checksum"] = png[:29] + bytes(4) + png[33:]
    out["JPEG that claims 65535 pixels each way"] = _with_size(files["JPEG"], 65535, 65535)
    return out


def _with_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[at + 4 :]


BROKEN = broken_images()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_a_400(http: httpx.Client, name: str) -> None:
    assert refused(embed_images(http, [BROKEN[name]]), 400)["message"].startswith("Could not load input image. Cause: ")


TEXTS = [
    "\0",
    "\ufeff",
    "\u202e",
    "<start_of_text>",
    "<end_of_text> a",
    "&amp;lt;",
    "𐀀",
    "\n\t",
    "a\u0301" * 9,
    "-" * 2000,
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_an_odd_text_is_embedded_or_refused(http: httpx.Client, text: str) -> None:
    assert embed_texts(http, [text]).status_code in (200, 400)


def test_a_lone_surrogate_is_refused(http: httpx.Client) -> None:
    response = http.post("/clip/embed_text", content=b'{"text": "\\ud800"}')
    assert response.status_code in (400, 422)


# Fuzz: well-formed requests, spoilt at random in every layer: JSON, schema, base64, the file, the query.

_VALUES: list[Callable[[random.Random], Any]] = [
    lambda r: None,
    lambda r: r.choice([True, False]),
    lambda r: r.choice([0, -1, 2**63, 1e308, 0.5]),
    lambda r: "".join(chr(r.choice([r.randrange(32, 127), r.randrange(0xD7FF)])) for _ in range(r.randrange(40))),
    lambda r: [],
    lambda r: {},
    lambda r: [value(r) for _ in range(r.randrange(5))],
    lambda r: {r.choice(["type", "value", "a", ""]): value(r) for _ in range(r.randrange(4))},
    lambda r: {"type": r.choice(["url", "base64", "file", "numpy", "URL"]), "value": value(r)},
    lambda r: base64_image(spoilt(r, r.choice(list(FILES.values())))),
    lambda r: "https://" + r.choice(["", "a", "::", "[", "a..b", "x.invalid/\0", "1.2.3", "é.invalid", "a.b:99999"]),
]
FILES = {f: noise_image(2, size=(48, 40), format=f) for f in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("embed_image", {"image": [base64_image(FILES["PNG"]), base64_image(FILES["JPEG"])]}),
    ("embed_text", {"text": ["a cat", "a dog"]}),
    ("compare", {"subject": base64_image(FILES["GIF"]), "prompt": {"a": "a cat", "b": "a dog"}}),
    (
        "compare",
        {"subject": "a", "subject_type": "text", "prompt": base64_image(FILES["WEBP"]), "prompt_type": "image"},
    ),
]


def value(r: random.Random) -> Any:
    return r.choice(_VALUES)(r)


def spoilt(r: random.Random, data: bytes) -> bytes:
    """The bytes with some changed, cut, doubled or moved."""
    out = bytearray(data)
    for _ in range(r.randrange(1, 6)):
        at = r.randrange(len(out) + 1)
        match r.randrange(4):
            case 0:
                out[at : at + 1] = bytes([r.randrange(256)])
            case 1:
                del out[at : at + r.randrange(1, 40)]
            case 2:
                out[at:at] = out[: r.randrange(60)]
            case 3:
                out[at : at + 4] = r.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    return bytes(out)


def spoilt_body(r: random.Random, body: dict[str, Any]) -> bytes:
    body = json.loads(json.dumps(body)) | {"api_key": SECRET}
    match r.randrange(4):
        case 0:  # the JSON itself
            return spoilt(r, json.dumps(body).encode())
        case 1:  # a field
            body[r.choice([*body, "clip_version_id", "subject_type", "prompt_type"])] = value(r)
        case 2:  # what stands in a field
            field = r.choice([k for k in body if k != "api_key"])
            inside = body[field]
            if isinstance(inside, (list, dict)) and inside:
                inside[r.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))] = value(r)
        case 3:  # an image's file
            kind = r.choice(list(FILES))
            body["image"] = body["subject"] = base64_image(spoilt(r, FILES[kind]))
    return json.dumps(body).encode("utf-8", "surrogatepass")


def test_nothing_that_a_client_sends_makes_a_5xx(
    served: tuple[Stack, Api], http: httpx.Client, reference: Reference
) -> None:
    stack, _ = served
    pids = stack.workers()
    r = random.Random(SEED)
    seen: dict[int, int] = {}
    for number in range(FUZZ):
        route, body = r.choice(BODIES)
        sent = spoilt_body(r, body)
        response = http.post(f"/clip/{route}", content=sent, params={"api_key": "a"} if r.random() < 0.2 else {})
        why = f"request {number} of seed {SEED}: {response.status_code} {response.text[:200]}"
        assert response.status_code < 500, why
        if response.status_code == 422:
            assert all(p.keys() == {"loc", "msg", "type"} for p in response.json()["detail"]), why
        elif response.status_code >= 400:
            assert response.json()["message"], why
        assert SECRET not in response.text, why
        seen[response.status_code] = seen.get(response.status_code, 0) + 1
    assert {200, 400, 422} <= seen.keys(), f"the fuzz reaches too little: {seen}"
    assert stack.workers() == pids, "the worker died on the way"
    same(vectors(embed_images(http, [noise_image()])), reference.images([noise_image()]))
    for service in stack.services:
        assert "Traceback" not in service.log.read_text(errors="replace"), service.tail()


def test_random_bytes_are_no_image(http: httpx.Client) -> None:
    rng = np.random.default_rng(SEED)
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x20\0\0\0WEBPVP8 ", b"BM", b"II*\0"):
        data = head + rng.bytes(300)
        refused(http.post("/clip/embed_image", json={"image": base64.b64encode(data).decode()}), 400)
