"""Requests and the items that they hold."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import TypeAdapter

from clip_queue.api.items import RequestItems, json_type
from clip_queue.api.requests import (
    ClipRequest,
    Compare,
    EmbedImage,
    EmbedText,
    JobRequest,
    Limits,
)
from clip_queue.shared.errors import BadInput, ClipError, TextTooLong
from clip_queue.shared.fetch import ImageUrl
from clip_queue.shared.settings import Settings

LIMITS = Limits(items=3, texts=4, text_chars=10, image_bytes=1000)
RAW = b"\x89PNG 1"
IMAGE = base64.b64encode(RAW).decode()


def error(request: ClipRequest) -> ClipError:
    with pytest.raises(BadInput) as caught:
        request.items(LIMITS)
    return caught.value


def test_images_and_texts_are_one_or_several() -> None:
    assert EmbedImage(image=IMAGE).items(LIMITS) == RequestItems([RAW])
    assert EmbedImage(image=[IMAGE, "https://a.b/1"]).items(LIMITS).items == [RAW, ImageUrl("https://a.b/1", 1)]
    assert EmbedText(text="a").items(LIMITS) == RequestItems(["a"])
    assert EmbedText(text=["a", "b", "c", "d"]).items(LIMITS).items == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("body", "items", "names"),
    [
        ({"subject": IMAGE, "prompt": "a"}, [RAW, "a"], None),
        ({"subject": IMAGE, "prompt": ["a", "b"]}, [RAW, "a", "b"], None),
        ({"subject": IMAGE, "prompt": {"x": "a", "y": "b"}}, [RAW, "a", "b"], ["x", "y"]),
        ({"subject": "a", "subject_type": "text", "prompt": IMAGE, "prompt_type": "image"}, ["a", RAW], None),
        ({"subject": IMAGE, "prompt": {"type": "base64", "value": IMAGE}, "prompt_type": "image"}, [RAW, RAW], None),
        ({"subject": IMAGE, "prompt": {"type": "a", "other": "b"}}, [RAW, "a", "b"], ["type", "other"]),
    ],
)
def test_a_comparison_has_its_subject_first(body: dict[str, Any], items: list[object], names: list[str] | None) -> None:
    assert Compare.model_validate(body).items(LIMITS) == RequestItems(items, names)  # type: ignore[arg-type]


def test_indexes_in_errors_are_those_of_the_callers_list() -> None:
    prompts = {"subject": IMAGE, "prompt": ["a", "too long a text"]}
    text = error(Compare.model_validate(prompts))
    assert isinstance(text, TextTooLong)
    assert text.index == 1
    assert error(EmbedText(text=["a", "b", "too long a text"])).index == 2
    assert error(EmbedText(text="too long a text")).index is None
    assert error(EmbedImage(image=[IMAGE, "?"])).index == 1
    subject = error(Compare.model_validate({"subject": "?", "prompt": ["a", "b"]}))
    assert subject.index is None


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (EmbedImage(image=[]), "Field 'image' is empty: give at least one."),
        (EmbedImage(image=[IMAGE] * 4), "Field 'image' holds 4 items; at most 3 fit in a request."),
        (EmbedText(text=["a"] * 5), "Field 'text' holds 5 items; at most 4 fit in a request."),
        (Compare(subject=IMAGE, prompt={}), "Field 'prompt' is empty: give at least one."),
        (Compare(subject=IMAGE, prompt=["a"] * 4), "Field 'prompt' holds 4 items; at most 3 fit in a request."),
        (Compare(subject=[IMAGE], prompt="a"), "Field 'subject' must be one image or text, not a list."),
        (Compare(subject=IMAGE, prompt=[None]), "Field 'prompt' must hold text here; it holds null."),
    ],
)
def test_what_is_not_within_the_limits_is_named(request_: ClipRequest, message: str) -> None:
    assert error(request_).message == message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "null"),
        ({}, "an object"),
        ([], "a list"),
        (True, "true or false"),
        (1, "a number"),
        (1.5, "a number"),
        ("a", "text"),
        (b"", "something else"),
    ],
)
def test_the_types_of_json_have_names(value: object, says: str) -> None:
    assert json_type(value) == says


def test_a_job_may_hold_more_than_a_request() -> None:
    settings = Settings(max_items=1, max_texts=2, max_job_items=3, max_text_chars=4, max_image_bytes=5000)
    assert Limits.of_request(settings) == Limits(1, 2, 4, 5000)
    assert Limits.of_job(settings) == Limits(3, 3, 4, 5000)


def test_the_task_of_a_job_chooses_its_kind() -> None:
    adapter: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
    for body in ({"task": "embed_image", "image": IMAGE}, {"task": "compare", "subject": IMAGE, "prompt": "a"}):
        assert adapter.validate_python(body).kind == body["task"]
