"""Submitting a run over HTTP: what is accepted, whose it is, and each refusal. No worker leads it here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import httpx
import orjson
import pytest

from clip_queue.api.dataset_request import OWN, EmbedDatasetJob
from clip_queue.bulk.run.options import Option, options
from clip_queue.shared import ops, runs
from clip_queue.shared.job import JobResult, State
from clip_queue.shared.settings import Settings

from .service import MODEL, Service, serve

ROOTS = {"bulk_sources": "/in,s3://bucket/in", "bulk_outputs": "/out,/in/out"}
RUN = {"task": "embed_dataset", "source": "/in/a", "output": "/out/a"}


async def post(service: Service, **body: Any) -> httpx.Response:
    headers = body.pop("headers", None)
    return await service.http.post("/jobs", json={**RUN, **body}, headers=headers)


async def submitted(service: Service, **body: Any) -> dict[str, Any]:
    response = await post(service, **body)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/jobs/{response.json()['id']}"
    found: dict[str, Any] = response.json()
    return found


async def led(service: Service, job_id: str, worker: str = "w") -> runs.RunRequest:
    """A worker takes a run to lead; what it is asked for."""
    await service.store.execute(ops.beat(worker, b"", 60, []))
    assert await service.store.execute(runs.peek_run([MODEL])) == job_id
    (claimed,) = await service.store.execute(ops.claim([job_id], worker, 3))
    assert claimed.inputs
    return runs.RunRequest.from_inputs(claimed.inputs)


# The options


def test_the_options_are_those_of_embed() -> None:
    own = {name: field for name, field in EmbedDatasetJob.model_fields.items() if name not in OWN}
    known = options()
    assert own.keys() == known.keys()
    for name, field in own.items():
        kind, option = known[name]
        assert isinstance(option, Option)
        assert field.default is None, name
        text = repr(field)
        if option.choices:
            literal = next(each for each in get_args(field.annotation) if each is not type(None))
            assert get_args(literal) == option.choices, name
        if option.least is not None:
            assert f"Ge(ge={option.least})" in text, name
            assert f"Le(le={option.most})" in text, name
        assert type(None) in get_args(kind), name


async def test_a_run_is_accepted_with_its_options_and_waits_for_a_worker() -> None:
    async with serve(**ROOTS) as service:
        job = await submitted(service, dtype="float32", shard_size=5, texts=False, image_column="jpg", images=None)
        assert (job["state"], job["task"], job["model"], job["priority"]) == ("queued", "embed_dataset", MODEL, "bulk")
        assert job["queue"]["position"] == 0
        second = await submitted(service, output="/out/b")
        assert (await service.look(second["id"]))["queue"]["position"] == 1
        assert service.broker.sent == [], "workers of another release would get the message"
        assert not await service.redis.exists(f"cq:open:{MODEL}", f"cq:queued:{MODEL}:bulk")
        request = await led(service, job["id"])
        assert request == runs.RunRequest(
            ["/in/a"], "/out/a", {"dtype": "float32", "shard_size": 5, "texts": False, "image_column": "jpg"}, True
        )
        assert (await service.look(second["id"]))["queue"]["position"] == 0
        listed = (await service.http.get("/jobs")).json()["jobs"]
        assert [each["id"] for each in listed] == [second["id"], job["id"]]


async def test_paths_are_made_plain_and_several_are_kept() -> None:
    async with serve(**ROOTS) as service:
        job = await submitted(service, source=["/in//a.csv", "file:///in/b.csv"], output="/out/x/", image_root="/in/i/")
        request = await led(service, job["id"])
        assert (request.source, request.output) == (["/in/a.csv", "/in/b.csv"], "/out/x")
        assert request.options == {"image_root": "/in/i"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"priority": "interactive"}, "priority"),
        ({"priority": "background"}, "priority"),
        ({"on_error": "skip"}, "on_error"),
        ({"clip_version_id": MODEL}, "clip_version_id"),
        ({"callback_url": "https://x.test"}, "callback_url"),
        ({"confined": False}, "confined"),
        ({"kind": "embed_image"}, "kind"),
        ({"workers": 3}, "workers"),
        ({"redis_url": "redis://x"}, "redis_url"),
        ({"dtype": "int8"}, "dtype"),
        ({"shard_size": 0}, "shard_size"),
        ({"shard_size": "5"}, "shard_size"),
        ({"shard_size": True}, "shard_size"),
        ({"batch_size": 5000}, "batch_size"),
        ({"sample": 0}, "sample"),
        ({"sample": True}, "sample"),
        ({"sample": 1.5}, "sample"),
        ({"images": "yes"}, "images"),
        ({"layout": "lance"}, "layout"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": True}, "deadline_s"),
        ({"source": []}, "source"),
        ({"source": 5}, "source"),
        ({"source": None}, "source"),
        ({"output": ["/out/a"]}, "output"),
    ],
)
async def test_what_is_no_option_or_no_value_of_one_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    async with serve(**ROOTS) as service:
        response = await post(service, **body)
        assert response.status_code == 422, response.text
        assert any(field in each["loc"] for each in response.json()["detail"]), response.text
        assert await service.redis.keys("cq:job:*") == []


@pytest.mark.parametrize("missing", ["bulk_sources", "bulk_outputs"])
async def test_without_allowed_places_it_is_forbidden_and_says_which_setting(missing: str) -> None:
    async with serve(**{**ROOTS, missing: ""}) as service:
        response = await post(service)
        assert response.status_code == 403
        assert f"CLIP_QUEUE_{missing.upper()}" in response.json()["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"source": "/etc"}, 403, "'source' must lie in one of: /in, s3://bucket/in (setting bulk_sources)"),
        ({"source": ["/in/a", "/etc/passwd"]}, 403, "bulk_sources"),
        ({"source": "/in/../etc"}, 400, "no '..'"),
        ({"source": "/in/\0a"}, 400, "NUL"),
        ({"source": "in/a"}, 400, "absolute"),
        ({"source": "s3://bucket-evil/in"}, 403, "bulk_sources"),
        ({"source": "simplecache::s3://bucket/in"}, 400, "chained"),
        ({"source": "zip://x::/etc/a.zip"}, 400, "chained"),
        ({"source": ["/in/a", "/in/b*"]}, 400, "cannot be one of several"),
        ({"image_root": "/etc"}, 403, "'image_root' must lie in"),
        ({"image_root": "/in/../etc"}, 400, "image_root"),
        ({"output": "/etc/a"}, 403, "bulk_outputs"),
        ({"output": "/out"}, 403, "below"),
        ({"output": "/out/../in/a"}, 400, "no '..'"),
        ({"source": "/in", "output": "/in/out/a"}, 400, "lies in the source"),
        ({"seed": 3}, 400, "sample"),
        ({"model": "nothing"}, 404, "not known"),
        ({"model": "mine=local-dir:/etc"}, 404, "not known"),
        ({"source": "/in/\ud800"}, 400, "half of a character"),
    ],
)
async def test_what_is_not_allowed_is_refused_at_the_door(body: dict[str, Any], status: int, says: str) -> None:
    async with serve(**ROOTS) as service:
        response = await service.http.post("/jobs", content=orjson_or_json({**RUN, **body}))
        assert response.status_code == status, response.text
        assert says in response.json()["message"]
        assert await service.redis.keys("cq:job:*") == []


def orjson_or_json(body: dict[str, Any]) -> bytes:
    import json

    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body).encode()


async def test_links_that_leave_a_root_are_refused_where_the_api_sees_them(tmp_path: Path) -> None:
    for name in ("in", "out", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "secret")
    roots = {"bulk_sources": str(tmp_path / "in"), "bulk_outputs": str(tmp_path / "out")}
    async with serve(**roots) as service:
        good = {"source": str(tmp_path / "in"), "output": str(tmp_path / "out" / "a")}
        for change in (
            {"source": str(tmp_path / "in" / "link")},
            {"source": str(tmp_path / "in" / "link" / "*.csv")},
            {"image_root": str(tmp_path / "in" / "link")},
            {"output": str(tmp_path / "out" / "link" / "a")},
        ):
            response = await post(service, **{**good, **change})
            assert response.status_code == 403, (change, response.text)
            assert "leads out" in response.json()["message"]
        await submitted(service, **good)


# One run into one output, and how many


async def test_two_runs_into_one_output_are_refused_until_the_first_has_ended() -> None:
    async with serve(**ROOTS, api_keys="one,two") as service:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        first = await post(service, headers=one)
        again = await post(service, output="/out//a/", dtype="float32", headers=one)
        assert again.status_code == 409
        assert first.json()["id"] in again.json()["message"]
        other = await post(service, headers=two)
        assert other.status_code == 409
        assert first.json()["id"] not in other.json()["message"], "it is none of theirs"
        assert (await service.http.delete(f"/jobs/{first.json()['id']}", headers=one)).status_code == 200
        assert (await post(service, headers=two)).status_code == 202


async def test_a_run_that_is_repeated_with_its_key_is_the_same_run() -> None:
    async with serve(**ROOTS) as service:
        key = {"Idempotency-Key": "k"}
        first = await submitted(service, headers=key)
        again = await post(service, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, first["id"])
        assert (await post(service, headers=key, dtype="float32")).status_code == 422


async def test_a_run_belongs_to_its_key() -> None:
    async with serve(**ROOTS, api_keys="one,two") as service:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        assert (await service.http.post("/jobs", json=RUN)).status_code == 401
        job = (await service.http.post("/jobs", json={**RUN, "api_key": "one"})).json()
        for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/result", f"/jobs/{job['id']}/events"):
            assert (await service.http.get(path, headers=two)).status_code == 404
        assert (await service.http.delete(f"/jobs/{job['id']}", headers=two)).status_code == 404
        assert (await service.http.get("/jobs", headers=two)).json()["jobs"] == []
        assert (await service.http.get(f"/jobs/{job['id']}", headers=one)).status_code == 200


async def test_its_report_is_its_result() -> None:
    async with serve(**ROOTS) as service:
        job = await submitted(service)
        await led(service, job["id"])
        assert (await service.http.get(f"/jobs/{job['id']}/result")).status_code == 409
        result = JobResult("f", report={"rows": 4, "failed": 1, "scope": ["images only"]})
        await service.store.execute(ops.finish([ops.Completion(job["id"], State.SUCCEEDED, result, 4, 1)], "w"))
        found = (await service.http.get(f"/jobs/{job['id']}/result")).json()
        assert (found["rows"], found["failed"], found["scope"]) == (4, 1, ["images only"])
        document = await service.look(job["id"])
        assert (document["state"], document["fingerprint"], document["result"]["rows"]) == ("succeeded", "f", 4)
        assert document["expires"]
        npy = await service.http.get(f"/jobs/{job['id']}/result", headers={"Accept": "application/x-npy"})
        assert npy.status_code == 400


async def test_a_run_expires_at_its_deadline_also_where_no_worker_is_left() -> None:
    async with serve(**ROOTS, lease=0.6, worker=False) as service:
        job = await submitted(service, deadline_s=0.01)
        document = await service.look(job["id"], wait=20)
        assert document["state"] == "expired"


async def test_the_document_of_the_api_describes_the_task() -> None:
    async with serve() as service:
        found = (await service.http.get("/openapi.json")).json()
        schema = found["components"]["schemas"]["EmbedDatasetJob"]
        assert schema["additionalProperties"] is False
        assert {"source", "output", "shard_size", "dtype"} <= schema["properties"].keys()
        assert {"403", "409"} <= found["paths"]["/jobs"]["post"]["responses"].keys()


def test_by_default_nothing_is_allowed() -> None:
    assert (Settings().bulk_sources, Settings().bulk_outputs) == ([], [])
