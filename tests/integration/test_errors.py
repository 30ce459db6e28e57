"""Every row of the error table that a request alone can bring about, through HTTP to a real worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from clip_queue.shared.settings import Settings
from tests.images import base64_image, noise_image
from tests.wire import embed_images, embed_texts, ok, refused

CAUSE = "Could not load input image. Cause: "
GOOD = base64_image(noise_image())
MOST_TEXTS = Settings.model_fields["max_texts"].default


def image(http: httpx.Client, value: object) -> dict[str, Any]:
    return refused(http.post("/clip/embed_image", json={"image": value}), 400)


# Too many, too few


def test_more_than_eight_images_are_refused_by_the_limit(http: httpx.Client) -> None:
    message = refused(embed_images(http, [noise_image()] * 9), 400)["message"]
    assert message == "Field 'image' holds 9 items; at most 8 fit in a request."


@pytest.mark.parametrize("prompt", [["a"] * 9, {str(i): "a" for i in range(9)}], ids=["list", "object"])
def test_more_than_eight_prompts_are_refused_by_the_limit(http: httpx.Client, prompt: object) -> None:
    message = refused(http.post("/clip/compare", json={"subject": GOOD, "prompt": prompt}), 400)["message"]
    assert message == "Field 'prompt' holds 9 items; at most 8 fit in a request."


def test_more_texts_than_the_limit_are_refused_by_it(http: httpx.Client) -> None:
    message = refused(embed_texts(http, ["a"] * (MOST_TEXTS + 1)), 400)["message"]
    assert message == f"Field 'text' holds {MOST_TEXTS + 1} items; at most {MOST_TEXTS} fit in a request."


# Route, body, status, the field that the answer names
SHAPES: list[tuple[str, dict[str, Any], int, str]] = [
    ("embed_image", {}, 422, "image"),
    ("embed_image", {"image": []}, 400, "image"),
    ("embed_image", {"image": None}, 400, "image"),
    ("embed_image", {"image": [None]}, 400, "image"),
    ("embed_image", {"image": 7}, 400, "image"),
    ("embed_image", {"image": [[GOOD]]}, 400, "image"),
    ("embed_image", {"image": {}}, 400, "image"),
    ("embed_image", {"image": {"type": "base64"}}, 400, "image"),
    ("embed_image", {"image": {"type": "base64", "value": None}}, 400, "image"),
    ("embed_image", {"image": {"type": None, "value": "x"}}, 400, "image"),
    ("embed_image", {"image": {"value": "x"}}, 400, "image"),
    ("embed_text", {}, 422, "text"),
    ("embed_text", {"text": []}, 400, "text"),
    ("embed_text", {"text": None}, 422, "text"),
    ("embed_text", {"text": [None]}, 422, "text"),
    ("embed_text", {"text": 7}, 422, "text"),
    ("embed_text", {"text": {"a": "b"}}, 422, "text"),
    ("embed_text", {"text": "a", "clip_version_id": 7}, 422, "clip_version_id"),
    ("embed_text", {"text": "a", "clip_version_id": "x" * 201}, 422, "clip_version_id"),
    ("compare", {"prompt": "a"}, 422, "subject"),
    ("compare", {"subject": GOOD}, 422, "prompt"),
    ("compare", {"subject": GOOD, "prompt": []}, 400, "prompt"),
    ("compare", {"subject": GOOD, "prompt": {}}, 400, "prompt"),
    ("compare", {"subject": GOOD, "prompt": None}, 400, "prompt"),
    ("compare", {"subject": GOOD, "prompt": [None]}, 400, "prompt"),
    ("compare", {"subject": GOOD, "prompt": ["a", GOOD]}, 400, "prompt"),
    ("compare", {"subject": GOOD, "prompt": {"a": None}}, 400, "prompt"),
    ("compare", {"subject": GOOD, "prompt": GOOD}, 400, "prompt"),  # an image where prompt_type says text
    ("compare", {"subject": [GOOD], "prompt": "a"}, 400, "subject"),
    ("compare", {"subject": ["a"], "subject_type": "text", "prompt": "a"}, 400, "subject"),
    ("compare", {"subject": GOOD, "subject_type": "text", "prompt": "a"}, 400, "subject"),
    ("compare", {"subject": None, "subject_type": "text", "prompt": "a"}, 400, "subject"),
    ("compare", {"subject": GOOD, "prompt": "a", "subject_type": "audio"}, 422, "subject_type"),
    ("compare", {"subject": GOOD, "prompt": "a", "subject_type": None}, 422, "subject_type"),
    ("compare", {"subject": GOOD, "prompt": "a", "prompt_type": ""}, 422, "prompt_type"),
    ("compare", {"subject": GOOD, "prompt": "a", "prompt_type": ["text"]}, 422, "prompt_type"),
]


@pytest.mark.parametrize(("route", "body", "status", "field"), SHAPES)
def test_a_wrong_shape_is_refused_by_the_fields_name(
    http: httpx.Client, route: str, body: dict[str, Any], status: int, field: str
) -> None:
    response = http.post(f"/clip/{route}", json=body)
    if status == 400:
        assert field in refused(response, 400)["message"]
        return
    assert response.status_code == 422
    assert response.json().keys() == {"detail"}
    for problem in response.json()["detail"]:
        assert problem.keys() == {"loc", "msg", "type"}
        assert problem["loc"][:2] == ["body", field]


@pytest.mark.parametrize("content", [b"", b"no json", b"{", b"[]", b"null", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_422(http: httpx.Client, content: bytes) -> None:
    response = http.post("/clip/embed_text", content=content)
    assert response.status_code == 422
    assert [problem["loc"] for problem in response.json()["detail"]] == [["body"]]


def test_nan_is_a_number_and_so_no_text(http: httpx.Client) -> None:
    response = http.post("/clip/embed_text", content=b'{"text": NaN}')
    assert response.status_code == 422
    assert {tuple(problem["loc"][:2]) for problem in response.json()["detail"]} == {("body", "text")}


def test_a_422_never_echoes_what_was_sent(http: httpx.Client) -> None:
    secret = "s3cret-in-the-body"
    bodies: list[tuple[str, Any]] = [
        ("embed_text", {"text": {secret: secret}, "api_key": secret}),
        ("embed_text", {"text": [secret, {"a": secret}], "api_key": secret}),
        ("embed_text", {"text": "a", "clip_version_id": [secret]}),
        ("embed_text", {"text": "a", "clip_version_id": secret * 20}),
        ("embed_text", [secret]),
        ("embed_text", secret),
        ("embed_image", {"api_key": secret, secret: GOOD}),
        ("compare", {"subject_type": secret, "prompt_type": secret, "subject": secret, "api_key": secret}),
        ("compare", {"subject_type": {secret: secret}, "prompt": secret}),
    ]
    for route, body in bodies:
        response = http.post(f"/clip/{route}", json=body)
        assert response.status_code == 422, response.text
        assert secret not in response.text
    response = http.post("/clip/embed_text", content=f'{{"text": "{secret}'.encode())
    assert response.status_code == 422
    assert secret not in response.text


# Images


@pytest.mark.parametrize("kind", ["file", "pil", "", "base64 ", "http", "bytes"])
def test_an_unknown_image_type_is_refused(http: httpx.Client, kind: str) -> None:
    message = image(http, {"type": kind, "value": "x"})["message"]
    assert message == CAUSE + "Image declaration contains not recognised image type."


@pytest.mark.parametrize("kind", ["numpy", "NumPy", "numpy_object"])
def test_pickled_input_is_refused(http: httpx.Client, kind: str) -> None:
    message = image(http, {"type": kind, "value": "gASVAAAA"})["message"]
    assert message.startswith(CAUSE + "NumPy images are not accepted")


@pytest.mark.parametrize("value", ["a", "ab*d", "ünïcode", "data:image/png;base64,?"])
def test_bad_base64_is_refused(http: httpx.Client, value: str) -> None:
    for sent in (value, {"type": "base64", "value": value}):
        assert image(http, sent) == {"message": CAUSE + "Malformed base64 input image."}


@pytest.mark.parametrize("value", ["", "  \n", "data:image/png;base64,", "===="])
def test_an_empty_payload_is_refused(http: httpx.Client, value: str) -> None:
    for sent in (value, {"type": "base64", "value": value}):
        assert image(http, sent) == {"message": CAUSE + "Empty image payload."}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"no image", "Data is not image."),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS is not supported."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not supported."),
    ],
)
def test_what_is_no_image_is_refused_and_a_format_that_stays_closed_is_named(
    http: httpx.Client, data: bytes, cause: str
) -> None:
    assert image(http, base64_image(data)) == {"message": CAUSE + cause}


def test_a_local_path_is_never_read(http: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(noise_image())
    for path in (str(file), f"file://{file}"):
        for sent in (path, *({"type": kind, "value": path} for kind in ("base64", "file", "url"))):
            assert image(http, sent)["message"].startswith(CAUSE)


def test_an_error_says_which_of_several_images_is_to_blame(http: httpx.Client) -> None:
    assert image(http, [GOOD, GOOD, {"type": "file", "value": "x"}])["index"] == 2  # found by the API
    assert image(http, [GOOD, base64_image(b"no image"), GOOD])["index"] == 1  # found by the worker
    assert "index" not in image(http, [base64_image(b"no image")])


# Texts


def too_long(limit: int) -> str:
    return "word " * (limit + 1)


def test_text_over_the_context_length_is_refused_not_cut(http: httpx.Client) -> None:
    message = refused(embed_texts(http, [too_long(32)]), 400)["message"]
    assert message == "Text input is too long for the model context length: 35 tokens, 32 fit. Shorten it."
    assert refused(embed_texts(http, ["a", too_long(32), "b"]), 400)["index"] == 1
    body = {"subject": GOOD, "prompt": ["a", "b", too_long(32)]}
    assert refused(http.post("/clip/compare", json=body), 400)["index"] == 2
    ok(embed_texts(http, ["word " * 30]))  # and the start and the end: exactly 32


def test_a_text_of_too_many_characters_is_refused_before_it_is_tokenised(http: httpx.Client) -> None:
    answer = refused(embed_texts(http, ["a", "x" * 2001]), 400)
    assert answer["message"].startswith("Text input is too long for the model context length: 2001 characters")
    assert answer["index"] == 1


# Models


@pytest.mark.parametrize("route", ["embed_image", "embed_text", "compare"])
def test_an_unknown_model_is_404(http: httpx.Client, route: str) -> None:
    body = {"image": GOOD, "text": "a", "subject": GOOD, "prompt": "a", "clip_version_id": "ViT-Q-99"}
    assert "ViT-Q-99" in refused(http.post(f"/clip/{route}", json=body), 404)["message"]


@pytest.mark.parametrize(
    "model", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336px"]
)
def test_a_known_model_that_no_worker_serves_is_503_and_says_when_to_retry(http: httpx.Client, model: str) -> None:
    response = embed_texts(http, ["a"], clip_version_id=model)
    message = refused(response, 503)["message"]
    assert message == f"No live worker serves model {model!r} (served now: emoji-mini)."
    assert int(response.headers["retry-after"]) > 0


# URLs that the default settings refuse


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.org/a.png", "Plain http:// URLs are not accepted"),
        ("HTTP://example.org/a.png", "Plain http:// URLs are not accepted"),
        ("https://intranet/a.png", "host has no domain"),
        ("https://localhost:9001/a.png", "host has no domain"),
        ("https://127.0.0.1/a.png", "host is an IP address"),
        ("https://[::1]/a.png", "host is an IP address"),
        ("https://169.254.169.254/latest/meta-data", "host is an IP address"),
        ("https://user:password@example.org/a.png", "user name or password"),
        ("https://", "invalid"),
        ("https://images.invalid/a.png", "Data pointed by URL could not be decoded into image."),
    ],
)
def test_a_url_is_refused_and_the_answer_says_why(http: httpx.Client, url: str, why: str) -> None:
    for sent in (url, {"type": "url", "value": url}):
        message = image(http, sent)["message"]
        assert message.startswith(CAUSE)
        assert why in message
        assert "password@" not in message


def test_other_schemes_are_refused(http: httpx.Client) -> None:
    for url in ("ftp://example.org/a.png", "file:///etc/hostname", "gopher://example.org", "//example.org/a.png", ""):
        assert image(http, {"type": "url", "value": url})["message"].startswith(CAUSE)


# The rest of HTTP


def test_a_route_that_is_not_there_and_a_wrong_method_answer_with_a_message(http: httpx.Client) -> None:
    refused(http.get("/clip/nothing"), 404)
    refused(http.get("/clip/embed_text"), 405)


def test_a_body_nested_deeper_than_the_parser_goes_is_one_that_is_nested_too_deeply(http: httpx.Client) -> None:
    deep = b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    response = http.post("/clip/embed_text", content=deep)
    assert (response.status_code, response.json()["code"]) == (400, "bad_input")


def test_an_error_is_an_object_of_message_and_index_and_nothing_else(http: httpx.Client) -> None:
    response = embed_images(http, [noise_image(), encoded_half()])
    assert json.loads(response.content).keys() == {"message", "code", "index"}
    assert response.headers["content-type"] == "application/json"


def encoded_half() -> bytes:
    return noise_image()[: len(noise_image()) // 2]
