"""With ``log_format=json`` each line of a real API and of a real worker is an object."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.harness import Stack, wait_for
from tests.wire import embed_images, embed_texts, ok, refused

pytestmark = pytest.mark.timeout(600)

START = 240.0  # most seconds that a process takes to start on a loaded machine


def test_lines_of_api_and_worker_are_objects(own_stack: Stack) -> None:
    worker, api = own_stack.worker(log_format="json"), own_stack.api(log_format="json")
    own_stack.ready(worker, api, timeout=START)
    with api.client() as http:
        ok(embed_texts(http, ["a text nobody shall read in a log"]))
        headers = {"X-Request-Id": "of-the-test-1"}
        assert http.post("/clip/embed_text", json={"text": {"a": "hush"}}, headers=headers).status_code == 422
        refused(embed_images(http, [b"no image"]), 400)
        assert http.get("/nowhere?api_key=s3cr3t").status_code == 404
    for service in (api, worker):
        service.signal(signal.SIGTERM)
        wait_for(lambda service=service: not service.alive, START, f"{service.name} to end")
    written = api.log.read_text()
    for secret in ("nobody shall", "hush", "s3cr3t"):
        assert secret not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert {"uvicorn.error", "uvicorn.access", "clip_queue.api.request_log"} <= {line["logger"] for line in lines}
    failed = [line for line in lines if line["logger"] == "clip_queue.api.request_log"]
    about = [{k: line.get(k) for k in ("method", "route", "status", "code", "items", "model")} for line in failed]
    route: dict[str, Any] = {"method": "POST", "route": "/clip/embed_text", "items": 0, "model": None}
    assert about[0] == {**route, "status": 422, "code": "invalid"}
    assert about[1] == {
        "method": "POST",
        "route": "/clip/embed_image",
        "status": 400,
        "code": "bad_image",
        "items": 1,
        "model": "emoji-mini",
    }
    assert failed[0]["request_id"] == "of-the-test-1"
    # Celery prints, past its log, once what `--quiet` leaves out, and at last that it ends.
    lines_of_worker = worker.log.read_text().partition("\nworker: Warm shutdown")[0].rstrip().splitlines()
    is_json = [line.startswith("{") for line in lines_of_worker]
    assert is_json[0], "what is said while models are loaded, too"
    banner = is_json.index(False)
    after = is_json.index(True, banner)
    assert not [line for line in lines_of_worker[banner:after] if "WARNING" in line or "INFO" in line]
    said = [json.loads(line) for line in lines_of_worker[:banner] + lines_of_worker[after:]]
    assert {"celery.worker.consumer.connection"} <= {line["logger"] for line in said}
    notices = [line for line in said if "knows emoji" in line["message"]]
    assert [line["level"] for line in notices] == ["WARNING"], "said while the model is loaded, and once"
