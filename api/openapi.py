"""The OpenAPI documentation of bodies that the routes read themselves (:mod:`clip_queue.api.body`)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter

_SCHEMAS: dict[str, Any] = {}  # the schemas that the documented bodies refer to, by name


def documented(model: type[BaseModel] | TypeAdapter[Any], examples: dict[str, Any]) -> dict[str, Any]:
    """A route's ``openapi_extra`` for its JSON body. The examples are complete requests."""
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
    _SCHEMAS.update(schema.pop("$defs", {}))
    named = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}}}


def complete(app: FastAPI) -> None:
    """Add the schemas that those bodies refer to to the application's OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in _SCHEMAS.items():
            components.setdefault(name, schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
