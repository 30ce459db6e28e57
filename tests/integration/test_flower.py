"""Flower, as it is published, beside a real worker: what it shows, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.environments import clean_environment, program
from tests.harness import Service, Stack, free_port, stack, wait_for
from tests.jobs_api import submit_texts, succeeded
from tests.team import START
from tests.wire import embed_texts, vectors

pytestmark = [pytest.mark.flower, pytest.mark.slow, pytest.mark.timeout(400)]

WORD = "wombat"


class Flower(Service):
    def __init__(self, stack: Stack) -> None:
        self.port = free_port()
        options = [f"--port={self.port}", "--address=127.0.0.1"]
        command = [program("flower", "FLOWER", "celery"), "--broker", stack.redis_url, "flower", *options]
        super().__init__("flower", command, stack.folder)
        self.env = {**clean_environment(), "FLOWER_UNAUTHENTICATED_API": "true"}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    def answers(self) -> bool:
        try:
            with self.client() as http:
                return http.get("/healthcheck").status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, httpx.Client, httpx.Client]]:
    """A worker, a client of the API, and one of a Flower that has seen it at work."""
    with stack(tmp_path_factory.mktemp("flower"), celery_tools=True) as it:
        worker, api, flower = it.worker(), it.api(), Flower(it)
        it.ready(worker, api, timeout=START)
        it.add(flower)
        wait_for(flower.answers, 90, "Flower")
        with api.client() as http, flower.client() as looking:
            wait_for(lambda: set(looking.get("/api/workers?status=1").json().values()) == {True}, 60, "a worker")
            vectors(embed_texts(http, [WORD]))
            succeeded(http, submit_texts(http, f"{WORD} {WORD}"))
            yield worker, http, looking


def test_it_shows_the_worker_its_messages_and_its_queues(
    shown: tuple[Service, httpx.Client, httpx.Client],
) -> None:
    _, _, looking = shown
    (name, about), *others = looking.get("/api/workers?refresh=1").json().items()
    assert not others
    assert about["registered"] == ["clip.run"]
    assert about["stats"]["broker"] == {"transport": "redis"}
    tasks = wait_for(lambda: _ended(looking), 60, "messages that have ended")
    assert {task["worker"] for task in tasks} == {name}
    queues = {queue["name"] for queue in looking.get("/api/queues/length").json()["active_queues"]}
    assert "clip.emoji-mini.interactive" in queues
    page = looking.get("/workers").text
    assert name in page
    assert WORD not in page + looking.get("/api/tasks").text + looking.get("/metrics").text


def _ended(looking: httpx.Client) -> list[dict[str, str]]:
    tasks = list(looking.get("/api/tasks").json().values())
    return tasks if len(tasks) >= 2 and {task["state"] for task in tasks} == {"SUCCESS"} else []


def test_a_failed_job_is_a_message_that_succeeded(shown: tuple[Service, httpx.Client, httpx.Client]) -> None:
    _, http, looking = shown
    answer = http.post("/clip/embed_image", json={"image": {"type": "base64", "value": "AAAA"}})
    assert answer.status_code == 400
    wait_for(lambda: _ended(looking), 60, "messages that have ended")


def test_its_buttons_change_nothing(shown: tuple[Service, httpx.Client, httpx.Client]) -> None:
    worker, http, looking = shown
    (name,) = looking.get("/api/workers?status=1").json()
    assert looking.post(f"/api/worker/shutdown/{name}").status_code == 200, "it asks and waits for no answer"
    for order in (f"pool/shrink/{name}?n=1", f"queue/cancel-consumer/{name}?queue=clip.emoji-mini.interactive"):
        answer = looking.post(f"/api/worker/{order}")
        assert (answer.status_code, "only looked at" in answer.text) == (403, True), answer.text
    vectors(embed_texts(http, ["still served"]))
    assert worker.alive


def test_its_requirements_name_the_celery_of_the_service() -> None:
    root = Path(__file__).parents[2]
    pins = (root / "tests/flower.txt").read_text().split()
    locked = (root / "requirements.lock").read_text().split()
    assert {pin.replace("celery[redis]", "celery") for pin in pins if "==" in pin and "flower" not in pin} <= set(
        locked
    )
