"""The process in which a worker leads a run: planning and looking take nothing from the worker's model.

``python -m clip_queue.bulk.run.led`` reads one line of JSON from its standard input, the order, and writes
lines of JSON: ``{"done", "failed"}`` now and then, and last ``{"report"}``, ``{"error"}`` or ``{"stopped"}``. Its
settings are its environment. It ends with its standard input, which ends with the worker.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import closing, suppress
from typing import Any

import orjson

from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.run.allowed import check_request, claim_output
from clip_queue.bulk.run.embed import embed
from clip_queue.bulk.run.lead import Order, WorkerLead
from clip_queue.bulk.run.progress import Progress
from clip_queue.bulk.run.report import Report
from clip_queue.bulk.run.workers import NotStarted
from clip_queue.shared import json_log
from clip_queue.shared.errors import ClipError, Unavailable, WorkerLost
from clip_queue.shared.fields import read
from clip_queue.shared.runs import RunRequest, write_progress
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.sources import confinement

log = logging.getLogger(__name__)

NICE = 10  # the worker's own threads go before
SAY_INTERVAL = 1.0  # seconds between two lines of progress
NAMED = 5  # shards that could not be done and are named


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no reply
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="[%(asctime)s: %(levelname)s/led] %(message)s")
    json_log.install(Settings())
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the worker
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    os.nice(NICE)
    order = read(Order, orjson.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_the_worker, name="end-with-the-worker", daemon=True).start()
    replies.write(orjson.dumps(_outcome(order, stop, replies)) + b"\n")


def _end_with_the_worker() -> None:
    # Not by sys.stdin: its lock, held by a thread that waits, would end an interpreter that ends with an abort.
    while os.read(0, 4096):
        pass
    os._exit(1)  # killed at any moment: the next leader goes on


def _outcome(order: Order, stop: threading.Event, replies: Any) -> dict[str, Any]:
    try:
        report = lead(order, Settings(), stop, _Teller(replies))
    except NotStarted:
        return {"stopped": True}
    except ClipError as error:
        return {"error": error.to_wire()}
    except OSError as error:
        return {"error": OutputError.because(error).to_wire()}
    except Exception as error:  # a bug: the run fails, and the log says where
        log.exception("a run could not be led")
        return {"error": ClipError(f"The run could not be led ({type(error).__name__}: {error}).").to_wire()}
    if report.stopped:
        return {"stopped": True}
    if not report.finished:
        return {"error": lost(report).to_wire(), "report": document(report)}
    return {"report": document(report)}


def lead(order: Order, settings: Settings, stop: threading.Event, show: Any) -> Report:
    """Lead a run to its end, or until ``stop``. Raises as :func:`clip_queue.embed` does."""
    request = read(RunRequest, order.request)
    options = {**request.options, "model": request.options.get("model") or order.model}
    if request.confined:
        confinement.of_process(settings)
        check_request(request, settings)
        claim_output(Output(request.output), order.owner)
    with closing(Store.connect(settings)) as store:

        def say(line: str) -> None:
            """A line about the planning, as the run's progress; the run itself has numbers."""
            log.info("%s", line)
            with suppress(Unavailable):
                _, ours = store.execute(write_progress(order.job_id, order.worker, 0, {"says": line}, advanced=False))
                if not ours:
                    stop.set()

        return embed(
            request.source if len(request.source) > 1 else request.source[0],
            request.output,
            redis_url=settings.redis_url.get_secret_value(),
            settings=settings,
            show=show,
            say=say,
            should_stop=stop.is_set,
            lead=WorkerLead(order.job_id, order.owner, order.worker, request.confined),
            **options,
        )


class _Teller:
    """Tells the worker the progress, now and then."""

    def __init__(self, replies: Any) -> None:
        self._replies, self._said = replies, 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._said >= SAY_INTERVAL:
            self._said = time.monotonic()
            self._replies.write(orjson.dumps({"done": progress.done, "failed": progress.failed}) + b"\n")


def document(report: Report) -> dict[str, Any]:
    """A report as the run's result."""
    return {
        "output": report.output,
        "model": report.model,
        "fingerprint": report.fingerprint,
        "shards": report.shards,
        "complete": report.complete,
        **report.to_json(),
        "resumed": report.resumed,
        "scope": report.scope(),
        "lost": {str(shard): why for shard, why in list(report.lost.items())[:NAMED]},
    }


def lost(report: Report) -> ClipError:
    """The error of a run some of whose shards could not be done."""
    named = "; ".join(f"shard {shard}: {why}" for shard, why in list(report.lost.items())[:NAMED])
    return WorkerLost(
        f"{report.shards - report.complete} of {report.shards} shards could not be done ({named}); what is complete "
        "stays, and the same submission again goes on."
    )


if __name__ == "__main__":
    main()
