"""The project's own client against a real service, blocking and asynchronous."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from clip_queue import BadRequest, Client, ClientClosed, Embeddings, JobFailed, StillRunning, Unavailable
from tests.client_faces import FACES, Face
from tests.harness import ROOT, Api, Stack, wait_for
from tests.images import base64_image, noise_image
from tests.jobs_api import look
from tests.team import START, Team
from tests.wire import embed_images, embed_texts, ok, same, vectors

pytestmark = pytest.mark.timeout(900)

DOG = ROOT / "cli/samples/dog.png"
KEY = "key-of-the-client-4be1"

Make = Callable[..., Face]


@pytest.fixture(params=FACES)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes faces of the client."""
    for name in ("CLIP_QUEUE_URL", "CLIP_QUEUE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made: list[Face] = []

    def make(url: str, **options: Any) -> Face:
        made.append(FACES[request.param](url, **{"retry_for": START, "timeout": START, **options}))
        return made[-1]

    yield make
    for face in made:
        face.close()


@pytest.fixture
def face(make: Make, served: tuple[Stack, Api]) -> Face:
    return make(served[1].url)


def refusals(api: Api, line: str) -> int:
    """How many lines of an API's log say this."""
    return api.log.read_text().count(line)


def test_every_form_of_an_image_has_its_vector(face: Face, http: httpx.Client) -> None:
    pixels = Image.open(DOG).convert("RGB")
    forms = [DOG, str(DOG), DOG.read_bytes(), np.asarray(pixels), pixels]
    found = face.do(face.client.embed_images, forms)
    assert isinstance(found, Embeddings)
    assert found.vectors.dtype == np.float32
    same(found.vectors, np.repeat(vectors(embed_images(http, [DOG.read_bytes()])), 5, axis=0))
    assert found.model == "emoji-mini"
    assert len(found.fingerprints) == 1
    assert face.do(face.client.embed_images, DOG).vectors.shape == (1, 128)


def test_3000_texts_and_300_images_come_back_in_order(face: Face, http: httpx.Client) -> None:
    texts = [f"thing {i}" for i in range(3000)]
    found = face.do(face.client.embed_texts, texts).vectors
    assert found.shape == (3000, 128)
    assert np.isfinite(found).all()
    for start in range(0, 3000, 600):
        some = slice(start, start + 200)
        same(found[some], vectors(embed_texts(http, texts[some])))
    images = [noise_image(i) for i in range(300)]
    found = face.do(face.client.embed_images, images, model="emoji-mini").vectors
    assert found.shape == (300, 128)
    for start in range(0, 300, 50):
        some = slice(start, start + 8)
        same(found[some], vectors(embed_images(http, images[some])))


def test_comparisons(face: Face, http: httpx.Client) -> None:
    prompts = [f"thing {i}" for i in range(20)]
    found = face.do(face.client.compare, DOG, prompts)
    assert found.shape == (20,)
    eight = http.post("/clip/compare", json={"subject": base64_image(DOG.read_bytes()), "prompt": prompts[:8]})
    assert np.allclose(found[:8], ok(eight)["similarity"], atol=1e-5)
    named = face.do(face.client.compare, "sad", {"tears": "crying", "food": "pizza"}, subject_type="text")
    assert named["tears"] > named["food"]
    assert face.do(face.client.compare, "a dog", [DOG], subject_type="text", prompt_type="image").shape == (1,)


def test_one_bad_image_of_300(face: Face) -> None:
    images = [noise_image(i) for i in range(300)]
    images[217] = b"no image"
    with pytest.raises(BadRequest, match="Data is not image") as caught:
        face.do(face.client.embed_images, images)
    assert (caught.value.status, caught.value.index) == (400, 217)
    assert caught.value.request_id
    found = face.do(face.client.embed_images, images, on_error="skip")
    assert [(one.index, one.code) for one in found.errors] == [(217, "bad_image")]
    assert np.isnan(found.vectors[217]).all()
    assert np.isfinite(found.vectors[found.good]).all()
    assert len(found.good) == 299


def test_whatever_is_wrong_with_an_item_is_its_own_error(face: Face) -> None:
    bad = [b"", b"no image", "no/such.png", None, "http://127.0.0.1/a.png", "https://no-such-host.invalid/a.png", 7]
    found = face.do(face.client.embed_images, [DOG, *bad, *[b"x"] * 16, DOG], on_error="skip")
    assert [one.index for one in found.errors] == list(range(1, 24))
    assert {one.code for one in found.errors} == {"bad_image"}
    assert found.good.tolist() == [0, 24]
    texts = ["good", "x" * 3000, "a \ud83d", None, "word " * 500]
    told = face.do(face.client.embed_texts, texts, on_error="skip").errors
    assert [(one.index, one.code) for one in told] == [
        (1, "text_too_long"),
        (2, "bad_input"),
        (3, "bad_input"),
        (4, "text_too_long"),
    ]


def test_a_job_from_submission_to_result(face: Face, http: httpx.Client) -> None:
    job = face.do(face.client.submit, {"task": "embed_image", "image": [DOG, noise_image(1)], "deadline_s": 600})
    documents = face.do(job.events)
    assert [one["id"] for one in documents] == [job.id] * len(documents)
    assert documents[-1]["state"] == job.state == "succeeded"
    found = face.do(job.result)
    same(found.vectors, vectors(embed_images(http, [DOG.read_bytes(), noise_image(1)])))
    assert found.model == "emoji-mini"
    again = face.do(face.client.job, job.id)
    assert face.do(again.wait).state == "succeeded"
    same(face.do(again.result).vectors, found.vectors)
    assert face.do(job.cancel) is False
    texts = face.do(face.client.submit, {"task": "embed_text", "text": ["a", "x" * 3000, "b"], "on_error": "skip"})
    skipped = face.do(texts.result)
    assert [(one.index, one.code) for one in skipped.errors] == [(1, "text_too_long")]
    assert np.isnan(skipped.vectors[1]).all()
    compared = face.do(face.client.submit, {"task": "compare", "subject": DOG, "prompt": {"a": "dog", "b": "pizza"}})
    assert face.do(compared.result).keys() == {"a", "b"}
    listed = face.do(face.client.submit, {"task": "compare", "subject": DOG, "prompt": ["dog", "pizza"]})
    assert face.do(listed.result).shape == (2,)


def test_a_job_that_fails_says_why(face: Face) -> None:
    job = face.do(face.client.submit, {"task": "embed_image", "image": [DOG, b"no image"]})
    with pytest.raises(JobFailed, match="Data is not image") as caught:
        face.do(job.result)
    assert (caught.value.state, caught.value.code, caught.value.index) == ("failed", "bad_image", 1)
    with pytest.raises(BadRequest) as unknown:
        face.do(face.client.job, "no-such-job")
    assert unknown.value.status == 404
    with pytest.raises(BadRequest, match="task"):
        face.do(face.client.submit, {"task": "dance"})
    with pytest.raises(BadRequest, match="not known here"):
        face.do(face.client.embed_texts, ["a"], model="of-nobody")


def test_equal_keys_make_one_job(face: Face) -> None:
    task, key = {"task": "embed_text", "text": ["once"]}, f"cat-{time.monotonic_ns()}"
    one, two = (face.do(face.client.submit, task, idempotency_key=key) for _ in range(2))
    assert one.id == two.id
    with pytest.raises(BadRequest) as caught:
        face.do(face.client.submit, {**task, "text": ["other"]}, idempotency_key=key)
    assert caught.value.status == 422


def test_a_server_with_lower_limits_is_sent_less(make: Make, served: tuple[Stack, Api]) -> None:
    api = served[0].api(max_texts=40, max_items=3, max_body_bytes=20_000)
    served[0].ready(api, timeout=START)
    face = make(api.url, concurrency=1)
    assert face.do(face.client.embed_texts, [f"thing {i}" for i in range(300)]).vectors.shape == (300, 128)
    assert refusals(api, "POST /clip/embed_text 400") == 1, "from then on it is known"
    assert face.do(face.client.compare, "a", ["b"] * 10, subject_type="text").shape == (10,)
    images = [noise_image(i, size=(40, 40)) for i in range(20)]
    assert face.do(face.client.embed_images, images).vectors.shape == (20, 128)
    found = face.do(face.client.embed_images, [*images, noise_image(1, size=(800, 800))], on_error="skip")
    assert [(one.index, one.code) for one in found.errors] == [(20, "too_large")]
    api.stop()


def test_a_wrong_key_is_told_at_once_and_a_right_one_is_logged_nowhere(
    make: Make, served: tuple[Stack, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = served[0].api(api_keys=f"{KEY},another")
    served[0].ready(api, timeout=START)
    for wrong in ({}, {"api_key": "wrong-key-77"}):
        face = make(api.url, **wrong)
        for method, argument in (("embed_texts", ["a"]), ("submit", {"task": "embed_text", "text": "a"}), ("job", "j")):
            with pytest.raises(BadRequest, match="Unauthorized api_key") as caught:
                face.do(getattr(face.client, method), argument)
            assert caught.value.status == 401
    face = make(api.url, api_key=KEY)
    job = face.do(face.client.submit, {"task": "embed_text", "text": ["a"]})
    other = make(api.url, api_key="another")
    with pytest.raises(BadRequest):
        other.do(other.client.job, job.id)
    monkeypatch.setenv("CLIP_QUEUE_API_KEY", KEY)
    face = make(api.url)
    assert face.do(face.client.embed_texts, ["a"]).vectors.shape == (1, 128)
    assert face.do(face.do(face.client.job, job.id).result).vectors.shape == (1, 128)
    api.stop()
    assert not any(key in api.log.read_text() for key in (KEY, "wrong-key-77"))


@pytest.mark.slow
def test_no_item_is_lost_when_the_api_is_killed_in_the_middle(make: Make, served: tuple[Stack, Api]) -> None:
    api = served[0].api()
    served[0].ready(api, timeout=START)
    face, killed = make(api.url), [1000, 2200]

    def texts() -> Iterator[str]:
        for i in range(3000):
            if i in killed:
                api.kill()  # requests are in flight
                threading.Timer(1, api.start).start()
            yield f"thing {i}"

    found = face.do(face.client.embed_texts, texts()).vectors
    steady = make(served[1].url)
    same(found, steady.do(steady.client.embed_texts, [f"thing {i}" for i in range(3000)]).vectors)
    api.stop()


@pytest.mark.slow
def test_a_job_is_waited_for_and_watched_over_a_restart_of_the_api(make: Make, solo: Team) -> None:
    api = solo.another_api()
    face = make(api.url)
    solo.faults.delay(0.5)
    job = face.do(face.client.submit, {"task": "embed_text", "text": [f"slow {i} of {api.port}" for i in range(200)]})
    other = face.do(face.client.job, job.id)
    wait_for(lambda: look(solo.http, job.id)["items"]["done"], START, "the first passes")
    api.kill()
    restart = threading.Timer(1, api.start)
    restart.start()
    documents = face.do(job.events)
    assert documents[-1]["state"] == "succeeded"
    restart.join()
    solo.faults.clear()
    assert face.do(other.result).vectors.shape == (200, 128)
    api.stop()


@pytest.mark.slow
def test_no_item_is_lost_when_the_worker_is_restarted_in_the_middle(make: Make, solo: Team) -> None:
    (worker,), face = solo.workers, make(solo.api.url)

    def texts() -> Iterator[str]:
        for i in range(2000):
            if i == 1000:
                worker.kill()
                threading.Timer(20, worker.start).start()  # later than the server's patience
            yield f"thing {i}"

    before = refusals(solo.api, "POST /clip/embed_text 503 unavailable")
    assert np.isfinite(face.do(face.client.embed_texts, texts()).vectors).all()
    assert refusals(solo.api, "POST /clip/embed_text 503 unavailable") > before


def test_a_full_queue_is_waited_for(make: Make, solo: Team) -> None:
    api = solo.another_api(max_queued_items=300)
    face = make(api.url)
    solo.faults.delay(0.1)
    assert face.do(face.client.embed_texts, [f"thing {i}" for i in range(2000)]).vectors.shape == (2000, 128)
    assert refusals(api, "POST /clip/embed_text 429 queue_full") > 0
    hasty = make(api.url, retry_for=0)
    with solo.busy(), pytest.raises(Unavailable) as caught:
        hasty.do(hasty.client.submit, {"task": "embed_text", "text": ["a"] * 200})
    assert caught.value.status == 429
    assert caught.value.retry_after is not None
    api.stop()


def test_a_job_is_cancelled(make: Make, solo: Team) -> None:
    face = make(solo.api.url)
    with solo.busy():
        job = face.do(face.client.submit, {"task": "embed_text", "text": ["never computed"]})
        with pytest.raises(StillRunning):
            face.do(job.result, timeout=0.5)
        assert face.do(job.cancel) is True
        with pytest.raises(JobFailed, match="cancelled"):
            face.do(job.result)
        assert face.do(job.cancel) is True, "once more is no error"
        assert [one["state"] for one in face.do(job.events)] == ["cancelled"]
    assert solo.faults.computed("never computed") == 0


def test_progress_is_seen_in_events(make: Make, solo: Team) -> None:
    face = make(solo.api.url)
    solo.faults.delay(1)
    run = time.monotonic_ns()  # what the worker has computed before, it remembers
    job = face.do(face.client.submit, {"task": "embed_text", "text": [f"step {i} of {run}" for i in range(40)]})
    done = [one["items"]["done"] for one in face.do(job.events)]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert done[-1] == 40


def test_closing_in_the_middle_of_a_request(solo: Team) -> None:
    solo.faults.delay(5)  # less than the worker takes for a hang
    raised: list[BaseException] = []
    client = Client(solo.api.url, timeout=START)

    def ask() -> None:
        try:
            client.embed_texts([f"in the middle {i}" for i in range(2000)])
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    # Two parts are under way at once, and either of them may be the first.
    wait_for(lambda: any("middle" in text for p in solo.faults.passes() for text in p.items), START, "the first pass")
    client.close()
    thread.join(15)
    assert [type(error) for error in raised] == [ClientClosed]
    load = solo.stack.valkey.client()
    solo.faults.clear()
    wait_for(lambda: int(load.hget("cq:load", "emoji-mini:interactive") or 0) == 0, START, "what it left to be dropped")


class Forgetful(httpx.BaseTransport):
    """Loses the answer to every first sending of a request that changes something."""

    def __init__(self) -> None:
        self._real = httpx.HTTPTransport()
        self._seen: set[tuple[str, str, str]] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._real.handle_request(request)
        about = (request.method, str(request.url), request.headers.get("idempotency-key", ""))
        if request.method != "GET" and about not in self._seen:
            self._seen.add(about)
            response.read()
            response.close()
            raise httpx.ReadError("the connection broke before the answer")
        return response

    def close(self) -> None:
        self._real.close()


def test_lost_answers_neither_double_a_job_nor_fail_its_cancelling(solo: Team) -> None:
    with (
        solo.busy(),
        httpx.Client(transport=Forgetful()) as http,
        Client(solo.api.url, http=http, retry_for=START) as client,
    ):
        before = {job["id"] for job in ok(solo.http.get("/jobs?limit=100"))["jobs"]}
        job = client.submit({"task": "embed_text", "text": ["only once"]})
        after = {job["id"] for job in ok(solo.http.get("/jobs?limit=100"))["jobs"]}
        assert after - before == {job.id}
        assert job.cancel() is True


def test_the_readme_s_example_runs(served: tuple[Stack, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (ours,) = [block for block in blocks if "Client(" in block]
    exec(ours.replace("http://127.0.0.1:9001", served[1].url), {})
