"""The OpenAPI document: bodies that the routes read themselves (:mod:`clip_queue.api.body`), errors, and keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter

from clip_queue.shared.settings import Settings

_SCHEMAS: dict[str, Any] = {}  # the schemas that the documented bodies refer to, by name

KEYED = ("CLIP", "Embeddings", "Jobs", "Weaviate", "Search", "Status")  # tags of the routes that ask for a key
KEYS = {
    "key in the query": {"type": "apiKey", "in": "query", "name": "api_key"},
    "key in the header": {"type": "http", "scheme": "bearer"},
}


class ErrorResponse(BaseModel):
    """``code`` names the reason; ``index`` is that of the item to blame, where there are several."""

    message: str
    code: str
    index: int | None = None


class Problem(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class InvalidResponse(BaseModel):
    """The first errors of the schema, and how many there are if they are not all listed."""

    detail: list[Problem]
    errors: int | None = None


_RETRY = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "string"}}}
_ERRORS: dict[int, dict[str, Any]] = {
    400: {"description": "An input cannot be used: `message` has the reason, `index` the item."},
    401: {"description": "No accepted API key came with the request."},
    403: {"description": "A dataset may not be read or written there: the settings allow others, or none."},
    404: {"description": "The server does not know the model."},
    408: {"description": "The body did not arrive in time."},
    409: {"description": "The job is not in a state for this: it has ended already, or has no result."},
    413: {"description": "The body is larger than the limit."},
    415: {"description": "The body is compressed in a way other than gzip."},
    422: {"model": InvalidResponse, "description": "The request is not what is described here."},
    429: {"description": "The queue is full.", "headers": _RETRY},
    500: {"description": "The job took down too many workers, or an error that the server's log tells."},
    503: {"description": "No live worker serves the model, or the store cannot be reached.", "headers": _RETRY},
    504: {"description": "The result did not arrive in time."},
}


def errors(
    *statuses: int, model: type[BaseModel] | None = None, **descriptions: str
) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses`` for errors. ``descriptions`` replace the usual ones: ``_404="…"``.

    ``model``: the form of its errors; None: that of most routes.
    """
    own = {"model": model} if model else {}
    return {
        status: {
            "model": ErrorResponse,
            **_ERRORS[status],
            **own,
            "description": descriptions.get(f"_{status}", _ERRORS[status]["description"]),
        }
        for status in statuses
    }


BODY_ERRORS = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
WITH_BODY = errors(*BODY_ERRORS, 422)
OF_A_JOB = errors(401, 404, 422, 503, _404="You have no such job, or its result has expired.")
ABOUT = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "X-Clip-Queue-Model": "The model.",
        "X-Clip-Queue-Fingerprint": "Of its weights, preprocessing and precision.",
        "X-Clip-Queue-Notice": "What is worth knowing of the model.",
        "Server-Timing": "Milliseconds of each stage.",
    }.items()
}


def documented(model: type[BaseModel] | TypeAdapter[Any], examples: dict[str, Any]) -> dict[str, Any]:
    """A route's ``openapi_extra`` for its JSON body. The examples are complete requests."""
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
    _SCHEMAS.update(schema.pop("$defs", {}))
    named = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}}}


def complete(app: FastAPI, settings: Settings) -> None:
    """Add to the application's document the schemas that those bodies refer to, and where keys are set, the keys."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = generate()
        components = document.setdefault("components", {})
        for name, schema in _SCHEMAS.items():
            components.setdefault("schemas", {}).setdefault(name, schema)
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        for operation in operations:
            content = operation["responses"].get("200", {}).get("content", {})
            if "text/event-stream" in content:
                content.pop("application/json", None)
        if settings.api_keys:
            components["securitySchemes"] = KEYS
            for operation in operations:
                if set(operation["tags"]) & set(KEYED) and "401" in operation["responses"]:
                    operation["security"] = [{name: []} for name in KEYS]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
