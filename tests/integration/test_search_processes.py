"""The processes that search: they are replaced and bounded, and what they are told by settings is checked."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.harness import Api, wait_for
from tests.integration.search_site import Site, serving
from tests.wire import ok

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("search processes"), "samples") as it:
        yield it


def searching(api: Api) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(api.pid).children(recursive=True)
        if "clip_queue.bulk.search.service" in " ".join(child.cmdline())
    ]


def test_a_process_that_was_killed_is_replaced(site: Site) -> None:
    site.hits("samples", row=0)
    for process in searching(site.api):
        process.kill()
    wait_for(lambda: site.post("samples", row=0).status_code == 200, 60, "another process")


def test_many_at_once_are_answered_or_told_to_come_again(site: Site) -> None:
    codes: list[int] = []

    def ask() -> None:
        codes.append(httpx.post(f"{site.api.url}/search/samples", json={"row": 0}, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(codes) == 100
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 64


def test_a_search_that_hangs_is_ended_and_holds_up_nothing_else(site: Site) -> None:
    api = site.stack.api(search=f"samples={site.folder / 'out' / 'samples'}", search_timeout=1, search_processes=1)
    site.stack.ready(api, timeout=240)
    with api.client() as http:
        ok(http.post("/search/samples", json={"row": 0}))
        (process,) = searching(api)
        process.suspend()
        began = time.monotonic()
        waiting = threading.Thread(target=lambda: http.get("/search/samples/images/0"))
        response = []
        hung = threading.Thread(target=lambda: response.append(http.post("/search/samples", json={"row": 0})))
        hung.start()
        waiting.start()
        ok(http.post("/clip/embed_text", json={"text": "red"}))
        hung.join(60)
        waiting.join(60)
        assert response[0].status_code in (429, 504)
        assert time.monotonic() - began < 40
        wait_for(lambda: http.post("/search/samples", json={"row": 0}).status_code == 200, 60)
    api.stop()
    assert not process.is_running()


def test_keys_are_asked_for(site: Site) -> None:
    api = site.stack.api(search=f"samples={site.folder / 'out' / 'samples'}", api_keys="one,two")
    wait_for(lambda: api.alive and api.answers(), 240)
    with api.client() as http:
        for response in (
            http.get("/search"),
            http.post("/search/samples", json={"text": "x"}),
            http.post("/search/nothing", json={"text": "x"}),
            http.get("/search/samples/images/0"),
            http.get("/search/nothing/images/0"),
            http.get("/search/samples/images/0", headers={"Authorization": "Bearer no"}),
        ):
            assert response.status_code == 401
        key = {"Authorization": "Bearer one"}
        assert http.get("/search/samples/images/0", headers=key).status_code == 200
        ok(http.post("/search/samples", json={"text": "x", "api_key": "two"}))
    (process, *_) = searching(api)
    assert not {"CLIP_QUEUE_API_KEYS", "CLIP_QUEUE_REDIS_URL"} & process.environ().keys()
    api.stop()
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running()


def test_vectors_of_another_model_are_not_compared(site: Site) -> None:
    other = site.folder / "other"
    shutil.copytree(site.folder / "out" / "samples", other)
    manifest = other / "manifest.json"
    text = manifest.read_text()
    fingerprint = text.split('"fingerprint": "')[1].split('"')[0]
    manifest.write_text(text.replace(fingerprint, "0" * len(fingerprint)))
    api = site.stack.api(search=f"other={other}")
    wait_for(lambda: api.alive and api.answers(), 240)
    with api.client() as http:
        wait_for(lambda: http.post("/clip/embed_text", json={"text": "x"}).status_code == 200, 60)
        message = site.refused(409, "other_model", http.post("/search/other", json={"text": "x"}))
        assert fingerprint in message
        ok(http.post("/search/other", json={"row": 0}))
    api.stop()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: f"a={folder / 'none'}", "there is no folder"),
        (lambda folder: f"a={folder}", "not an output"),
        (lambda folder: f"a={folder},a={folder}", "stands there twice"),
        (lambda folder: "nothing", "must be NAME=FOLDER"),
        (lambda folder: f"a/b={folder}", "must be of letters"),
        (lambda folder: "a=s3://bucket/x", "must be a folder of this machine"),
    ],
)
def test_a_setting_that_is_wrong_ends_the_api_with_one_line(site: Site, tmp_path: Path, make: Any, words: str) -> None:
    api = site.stack.api(search=make(tmp_path))
    assert api.process is not None
    assert api.process.wait(60) == 78
    assert words in api.tail()
    assert "CLIP_QUEUE_SEARCH" in api.tail()
    assert "Traceback" not in api.tail()


def test_a_model_that_is_not_served_ends_the_api_with_one_line(site: Site) -> None:
    api = site.stack.api(search=f"a={site.folder / 'out' / 'samples'}", models="ViT-B-16")
    assert api.process is not None
    assert api.process.wait(60) == 78
    assert "emoji-mini" in api.tail()


def test_an_output_that_goes_away_is_told_and_comes_back(site: Site) -> None:
    folder = site.folder / "moved"
    shutil.copytree(site.folder / "out" / "samples", folder)
    api = site.stack.api(search=f"moved={folder}")
    wait_for(lambda: api.alive and api.answers(), 240)
    with api.client() as http:
        ok(http.post("/search/moved", json={"row": 0}))
        folder.rename(site.folder / "away")
        wait_for(lambda: http.post("/search/moved", json={"row": 0}).status_code == 503, 60)
        wait_for(lambda: "problem" in http.get("/search").json()["searches"][0], 60)
        (site.folder / "away").rename(folder)
        wait_for(lambda: http.post("/search/moved", json={"row": 0}).status_code == 200, 60)
    api.stop()
