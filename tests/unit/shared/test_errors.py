"""Errors on their way from a worker to a caller."""

from __future__ import annotations

import pytest

from clip_queue.shared import errors
from clip_queue.shared.errors import BadImage, ClipError, TextTooLong, check_text_length

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClipError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_as_it_was(kind: type[ClipError]) -> None:
    found = ClipError.from_wire(kind("why", index=3).to_wire())
    assert type(found) is kind
    assert (found.message, found.index, found.status) == ("why", 3, kind.status)


def test_each_kind_has_a_code_of_its_own() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_an_unknown_code_is_an_internal_error() -> None:
    found = ClipError.from_wire({"code": "of a later release", "message": "why", "more": 1})
    assert (type(found), found.message, found.index, found.status) == (ClipError, "why", None, 500)
    assert ClipError.from_wire({}).message == "unknown error"


def test_an_image_that_cannot_be_loaded_says_why() -> None:
    assert BadImage.because("it is gone", index=1).message == "Could not load input image. Cause: it is gone"


def test_the_limit_of_a_text_is_exact() -> None:
    check_text_length("12345", 5)
    with pytest.raises(TextTooLong) as caught:
        check_text_length("123456", 5, index=2)
    assert caught.value.index == 2
    assert caught.value.message == ("Text input is too long for the model context length: 6 characters, 5 at most.")
