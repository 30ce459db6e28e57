"""clip-queue: CLIP behind an API and a queue, and datasets embedded by the same workers.

In Python::

    from clip_queue import embed, search

    report = embed("images", "vectors")
    hits = search("vectors", "a red fruit", top=3)

and of a server that runs somewhere::

    from clip_queue import Client

    with Client("http://127.0.0.1:9001") as clip:
        vectors = clip.embed_texts(["red heart", "dog face"]).vectors

What is named here is the public face of the package; everything else may change from release to release. Importing
it costs neither torch nor FastAPI: each name is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clip_queue.version import __version__

if TYPE_CHECKING:
    from clip_queue.bulk.run.dry_run import dry_run
    from clip_queue.bulk.run.embed import embed
    from clip_queue.bulk.search.index import search
    from clip_queue.client.async_client import AsyncClient, AsyncJob
    from clip_queue.client.batches import ClientLimits
    from clip_queue.client.client import Client, Job
    from clip_queue.client.errors import (
        BadRequest,
        ClientClosed,
        ClipQueueError,
        JobFailed,
        StillRunning,
        Unavailable,
    )
    from clip_queue.client.results import Embeddings, ItemError
    from clip_queue.shared.settings import Settings

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BadRequest",
    "Client",
    "ClientClosed",
    "ClientLimits",
    "ClipQueueError",
    "Embeddings",
    "ItemError",
    "Job",
    "JobFailed",
    "Settings",
    "StillRunning",
    "Unavailable",
    "__version__",
    "dry_run",
    "embed",
    "search",
]

_HOMES = {
    **dict.fromkeys(("AsyncClient", "AsyncJob"), "clip_queue.client.async_client"),
    **dict.fromkeys(("Client", "Job"), "clip_queue.client.client"),
    "ClientLimits": "clip_queue.client.batches",
    **dict.fromkeys(
        ("BadRequest", "ClientClosed", "ClipQueueError", "JobFailed", "StillRunning", "Unavailable"),
        "clip_queue.client.errors",
    ),
    **dict.fromkeys(("Embeddings", "ItemError"), "clip_queue.client.results"),
    "Settings": "clip_queue.shared.settings",
    "dry_run": "clip_queue.bulk.run.dry_run",
    "embed": "clip_queue.bulk.run.embed",
    "search": "clip_queue.bulk.search.index",
}


def __getattr__(name: str) -> Any:
    """The public names, loaded when they are asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
