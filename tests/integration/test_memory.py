"""The store's bytes: a limit together and for each key, and a server that has reached its maxmemory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest

from clip_queue.shared.ops import view
from tests.harness import wait_for
from tests.jobs_api import ended, look, post, submit, submit_texts, succeeded
from tests.team import START, Team
from tests.wire import embed_texts, refused, vectors

pytestmark = pytest.mark.timeout(500)

SHARE = 1_000_000  # bytes that one key may hold; a text that waits counts for a little more than 4 KiB
KEPT = 15.0  # seconds that results are kept


@pytest.fixture(scope="module")
def tenants(solo_stack: Team) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of two tenants of an API whose store is small."""
    solo_stack.heal()  # the file before may have left its worker broken
    with closing(solo_stack.stack.valkey.client()) as client:  # where other tests' results are, for an hour
        total = int(client.hget("cq:held", "*") or 0) + 20 * SHARE
    api = solo_stack.another_api(
        api_keys="first-key,second-key", max_store_bytes=total, max_owner_share=(SHARE + 0.5) / total, result_ttl=KEPT
    )
    with api.client(params={"api_key": "first-key"}) as one, api.client(params={"api_key": "second-key"}) as two:
        yield one, two
    api.stop()


def texts(n: int) -> list[str]:
    return [f"text {i}" for i in range(n)]


def test_a_tenant_fills_its_share_and_another_is_served(solo: Team, tenants: tuple[httpx.Client, httpx.Client]) -> None:
    one, two = tenants
    with solo.busy():
        held = submit(one, task="embed_text", text=texts(200))["id"]
        answer = post(one, task="embed_text", text=texts(200))
        assert f"of this key may hold {SHARE} bytes" in refused(answer, 429)["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        answer = embed_texts(one, texts(100))
        assert "of this key" in refused(answer, 429)["message"], "a synchronous request counts as well"
        other = submit(two, task="embed_text", text=texts(200))["id"]
        one.delete(f"/jobs/{held}")
        again = submit(one, task="embed_text", text=texts(200))["id"]
    succeeded(two, other)
    succeeded(one, again)


def test_a_job_that_never_fits_gets_413(solo: Team, tenants: tuple[httpx.Client, httpx.Client]) -> None:
    message = refused(post(tenants[0], task="embed_text", text=texts(300)), 413)["message"]
    assert "max_owner_share" in message


def test_results_that_expire_make_room(solo: Team, tenants: tuple[httpx.Client, httpx.Client]) -> None:
    one = tenants[0]
    wait_for(lambda: post(one, task="embed_text", text=texts(200)).status_code == 202, 60, "the results before to go")
    job = latest(one)
    assert ended(one, job)["state"] == "succeeded"
    # 200 vectors are kept, and 230 texts wait for theirs: more than the share.
    assert post(one, task="embed_text", text=texts(230)).status_code == 429
    wait_for(lambda: post(one, task="embed_text", text=texts(230)).status_code == 202, 4 * KEPT, "results to expire")


def latest(http: httpx.Client) -> str:
    """The job that the client submitted last."""
    return str(http.get("/jobs").json()["jobs"][0]["id"])


@contextmanager
def full_memory(solo: Team) -> Iterator[int]:
    """A server that has far more data than its maxmemory, which is the value: whatever is freed, it stays full."""
    client = solo.stack.valkey.client()
    limit = int(client.info("memory")["used_memory"]) // 2
    client.config_set("maxmemory", limit)
    try:
        yield limit
    finally:
        client.config_set("maxmemory", 0)
        client.close()


def test_with_its_memory_full_the_store_ends_what_it_has_accepted(solo: Team) -> None:
    http = solo.http
    solo.faults.delay(0.3)
    jobs = [submit_texts(http, *(f"{name} {i}" for i in range(60))) for name in "abcd"]
    wait_for(lambda: look(http, jobs[0])["state"] == "running", 60, "the first to run")
    pids = {service.pid for service in solo.stack.services if service.alive}
    with full_memory(solo) as limit:
        for answer in post(http, task="embed_text", text=["one more"]), embed_texts(http, ["one more"]):
            message = refused(answer, 503)["message"]
            assert f"Redis has reached its maxmemory of {limit} bytes" in message
            assert int(answer.headers["retry-after"]) > 0
        assert http.delete(f"/jobs/{jobs[3]}").status_code == 200
        assert look(http, jobs[3])["state"] == "cancelled"
        # A script that the server has forgotten is loaded, and leases of three seconds are renewed.
        solo.stack.valkey.client().script_flush()
        assert [ended(http, job, 120)["state"] for job in jobs[:3]] == ["succeeded"] * 3
        assert {look(http, job)["attempts"] for job in jobs[:3]} == {1}
    assert vectors(embed_texts(http, ["served again"])).shape == (1, 128)
    assert pids == {service.pid for service in solo.stack.services if service.alive}, "nothing was started again"


def test_a_worker_that_is_lost_with_the_memory_full_is_replaced(solo: Team) -> None:
    http, worker = solo.http, solo.workers[0]
    solo.faults.delay(0.5)
    jobs = [submit_texts(http, *(f"{name} {i}" for i in range(40))) for name in "abc"]
    jobs += [submit_texts(http, f"soon {i}", priority="interactive") for i in range(5)]
    with full_memory(solo):
        worker.kill()
        solo.faults.clear()
        worker.start()
        solo.stack.ready(worker, timeout=START)
        assert [ended(http, job, 120)["state"] for job in jobs] == ["succeeded"] * len(jobs)


def test_an_answered_request_leaves_nothing_in_the_store(solo: Team) -> None:
    def keys() -> set[bytes]:
        return {key for part in ("job", "in", "out", "watch") for key in client.keys(f"cq:{part}:*")}

    with closing(solo.stack.valkey.client()) as client:
        before = keys()
        for number in range(40):
            vectors(embed_texts(solo.http, [f"number {number}"]))
        wait_for(lambda: keys() <= before, 60, "the requests to be forgotten")  # others' results may expire meanwhile


def test_the_sums_are_those_of_the_records(solo: Team) -> None:
    """By the real server's numbers: what is counted is what a job's keys take, about."""
    client, store = solo.stack.valkey.client(), solo.store()
    client.delete("cq:kept", *client.keys("cq:kept:*"))  # what other jobs hold
    # The API learns within a second or two that the memory is not as small any more as a test before has made it.
    wait_for(lambda: post(solo.http, task="embed_text", text=texts(100)).status_code == 202, 60, "room for it")
    job = latest(solo.http)
    succeeded(solo.http, job)
    taken = sum(client.memory_usage(key) or 0 for key in (f"cq:job:{job}", f"cq:out:{job}"))
    owner = store.execute(view(job)).job.owner
    kept = [client.hgetall(f"cq:kept:{second.decode()}") for second in client.zrange("cq:kept", 0, -1)]
    counted = max(int(bucket.get(owner.encode(), 0)) for bucket in kept)
    assert 0.5 * taken < counted < 3 * taken
    # Else each field would have memory of its own, twice as much.
    assert client.object("encoding", f"cq:job:{job}") == b"listpack"
    store.close()
    client.close()
