"""The page for people: ``GET /`` for who accepts HTML, and its files under ``/page``.

They are read once, when the application starts, and none is fetched from elsewhere. The page uses only the routes that
every client has, so it needs no key of its own and nothing here knows one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from clip_queue.api.accept import weight

STATIC = Path(__file__).parent / "static"
SAMPLES = Path(__file__).parent.parent / "cli" / "samples"  # those of `clip-queue demo`
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",  # no text of anybody's becomes HTML, not even by a mistake of ours
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # kept, and asked for again: a new release is seen at once
}


@dataclass(frozen=True)
class File:
    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request, more: dict[str, str] | None = None) -> Response:
        """The file, or 304 for who has it."""
        headers = {**HEADERS, "ETag": self.etag, **(more or {})}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def load() -> dict[str, File]:
    """The page's files, by path below ``/page``."""
    paths = [(path.name, path) for path in STATIC.iterdir()]
    paths += [(f"samples/{path.name}", path) for path in SAMPLES.iterdir()]
    return {name: _file(path) for name, path in sorted(paths) if path.suffix in TYPES}


def _file(path: Path) -> File:
    content = path.read_bytes()
    return File(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:20]}"')


def install(app: FastAPI) -> None:
    """Serve the page. ``GET /`` gives it where ``app.state.page`` is it."""
    files = load()
    app.state.page = files["index.html"]

    @app.get("/page/{path:path}", include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        if path not in files:
            raise HTTPException(404, "Not Found")
        return files[path].answer(request)


def wanted(request: Request) -> File | None:
    """The page, if there is one and the caller would rather have HTML than JSON, as browsers say."""
    page: File | None = getattr(request.app.state, "page", None)
    accept = request.headers.get("accept", "")
    return page if page and weight(accept, "text/html") > weight(accept, "application/json") else None
