"""Texts longer than the model takes: refused, or cut where the request says so, on every route that has texts."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from tests.jobs_api import ended
from tests.reference import Reference
from tests.wire import cosines, embed_texts, ok, refused, same, vectors

LONG = "a red heart and a dog face " * 20
VERY_LONG = "pizza " * 10_000  # also over max_text_chars
CUT = {"long_texts": "cut"}


def test_the_beginning_is_embedded_as_open_clip_cuts(http: httpx.Client, reference: Reference) -> None:
    got = vectors(embed_texts(http, [LONG, "pizza", VERY_LONG], **CUT))
    same(got, reference.texts([LONG, "pizza", VERY_LONG[:2000]]))
    assert not np.allclose(got[0], got[1])


def test_what_was_cut_is_no_answer_to_who_does_not_cut(http: httpx.Client) -> None:
    assert embed_texts(http, [LONG + "!"], **CUT).status_code == 200
    assert "too long" in refused(embed_texts(http, [LONG + "!"]), 400)["message"]
    # Nor is what was not too long another text when it is cut.
    same(vectors(embed_texts(http, ["a whale"], **CUT)), vectors(embed_texts(http, ["a whale"])))


def test_a_comparison_and_a_job_can_cut_too(http: httpx.Client) -> None:
    body = {"subject": LONG, "subject_type": "text", "prompt": ["pizza", LONG, VERY_LONG]}
    similarity = ok(http.post("/clip/compare", json={**body, **CUT}))["similarity"]
    assert similarity[1] == pytest.approx(1.0, abs=1e-5)
    assert "too long" in refused(http.post("/clip/compare", json=body), 400)["message"]
    for more, state in ((CUT, "succeeded"), ({}, "failed")):
        job = http.post("/jobs", json={"task": "embed_text", "text": [LONG], **more}).json()
        assert ended(http, job["id"])["state"] == state


def test_openai_s_wire_cuts_where_it_is_told_to(http: httpx.Client) -> None:
    expected = vectors(embed_texts(http, [LONG], **CUT))
    for told in (True, "END"):
        body = {"input": [LONG], "truncate": told, "encoding_format": "float"}
        got = np.array([ok(http.post("/v1/embeddings", json=body))["data"][0]["embedding"]], np.float32)
        assert cosines(got, expected)[0] == pytest.approx(1.0, abs=1e-5)
    for told in (None, False, "NONE"):
        assert http.post("/v1/embeddings", json={"input": LONG, "truncate": told}).status_code == 400
    assert http.post("/v1/embeddings", json={"input": "a", "truncate": "START"}).status_code == 400


def test_a_chunk_of_a_large_request_cuts_too(http: httpx.Client) -> None:
    texts = [f"{number} {LONG}" for number in range(150)]
    assert vectors(embed_texts(http, texts, **CUT)).shape[0] == 150


def test_a_word_that_is_no_choice_is_refused(http: httpx.Client) -> None:
    response = embed_texts(http, ["a"], long_texts="shorten")
    assert response.status_code == 422
    assert "long_texts" in response.text
