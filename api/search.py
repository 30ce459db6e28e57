"""Searching outputs of ``embed`` that the settings open: by text, by image, or like a row; and the rows' pictures.

The query is embedded through the queue like any request; what is nearest a process of its own finds
(:mod:`clip_queue.api.search_processes`).
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter

from clip_queue.api import body, chunks
from clip_queue.api.clip import FETCH_SHARE, about, disconnected, matrix, respond
from clip_queue.api.items import RequestItems, parse_images, parse_texts
from clip_queue.api.job_client import JobClient
from clip_queue.api.keys import authenticate
from clip_queue.api.openapi import ABOUT, WITH_BODY, documented, errors
from clip_queue.api.requests import HEART, Images, check_count, several
from clip_queue.api.search_processes import Searches
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Kind
from clip_queue.shared.searches import DEFAULT_LIMIT, MAX_HITS, MAX_LIMIT, OtherModel, UnknownRow
from clip_queue.shared.vectors import Matrix, Vector, normalise

router = APIRouter(prefix="/search", tags=["Search"])

# An integer in JSON may be written 24.0.
Whole = Annotated[StrictInt, BeforeValidator(lambda n: int(n) if isinstance(n, float) and n.is_integer() else n)]

LARGEST_ROW = 2**53  # JSON's numbers are exact below

# A picture is shown as pixels or not at all: nothing of it is run, and no page can embed it as a document.
PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "Content-Disposition": "inline",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, max-age=60",
}


class SearchRequest(BaseModel):
    """Exactly one of ``text``, ``image`` and ``row``. Of several texts or images the mean direction is searched for."""

    model_config = ConfigDict(extra="ignore")

    text: StrictStr | Annotated[list[StrictStr], Field(fail_fast=True)] | None = None
    image: Images | None = None
    row: Whole | None = Field(None, description="The `row` of a hit: what is like it.")
    limit: Whole = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Most hits of this page.")
    offset: Whole = Field(0, ge=0, description=f"Hits before this page; with `limit` at most {MAX_HITS:,}.")


class SearchHit(BaseModel):
    """``score`` is the cosine; ``image`` the path of the picture, null where none is served."""

    rank: int
    score: float
    row: int
    caption: str | None
    image_path: str | None
    image: str | None
    metadata: dict[str, str | int | float | bool]


class SearchResponse(BaseModel):
    """``next_offset`` is that of the next page; null: there is none."""

    name: str
    model: str
    rows: int
    hits: list[SearchHit]
    next_offset: int | None


class SearchInfo(BaseModel):
    """An output: its model, what is searched (``images`` or ``texts``), its rows; ``problem``: why it cannot be."""

    name: str
    model: str | None
    among: str | None
    rows: int
    problem: str | None = None


class SearchList(BaseModel):
    searches: list[SearchInfo]


_SEARCH: TypeAdapter[SearchRequest] = TypeAdapter(SearchRequest)
_404 = "There is no search of that name, or no such row (`unknown_row`)."


def searches_of(request: Request) -> Searches:
    """The searches of the process that serves ``request``."""
    found: Searches = request.app.state.searches
    return found


async def summaries(request: Request, *, patience: float | None = None) -> list[dict[str, Any]]:
    """The outputs that can be searched, for who asks: ``name``, ``model``, ``rows`` and what is wrong. Never fails.
    ``patience``: seconds after which it is told what was known before."""
    searches = searches_of(request)
    found = await (searches.list() if patience is None else searches.glance(patience))
    return [
        {
            **{key: each[key] for key in ("name", "model", "among", "rows")},
            **({"problem": each["problem"]} if each["problem"] else {}),
        }
        for each in found
    ]


@router.get("", response_model=SearchList, responses=errors(401))
async def list_searches(request: Request) -> Response:
    """The outputs that can be searched here (setting `search`)."""
    authenticate(request, JobClient.of(request).settings)
    return respond({"searches": await summaries(request)})


@router.post(
    "/{name}",
    response_model=SearchResponse,
    responses={
        200: {"headers": ABOUT},
        **WITH_BODY,
        **errors(404, 409, _404=_404, _409="No worker has the model that made the vectors, as it was then."),
    },
    openapi_extra=documented(
        SearchRequest,
        {
            "by text": {"text": "a red fruit"},
            "by image": {"image": {"type": "base64", "value": HEART}},
            "like a row": {"row": 0, "limit": 12, "offset": 12},
        },
    ),
)
async def search(request: Request, name: str) -> Response:
    """The rows of an output that are nearest to texts, to images, or to one of its rows, best first."""
    client, searches = JobClient.of(request), searches_of(request)
    sent, owner = await body.read(request, client.settings, _SEARCH)
    searches.check(name)
    if sum(each is not None for each in (sent.text, sent.image, sent.row)) != 1:
        raise BadInput("Search for one of 'text', 'image' and 'row'.")
    if sent.offset + sent.limit > MAX_HITS:
        raise BadInput(f"Fields 'offset' and 'limit' lead beyond the first {MAX_HITS} hits.")
    output = next(each for each in await searches.list() if each["name"] == name)
    headers: dict[str, str] = {}
    if sent.row is not None:
        _check_row(sent.row)
        query: dict[str, Any] = {"row": sent.row}
    else:
        vector, fingerprint, headers = await _embedded(request, client, sent, owner, output)
        query = {"vector": vector.astype("<f4").tobytes(), "fingerprint": fingerprint}
    page, _ = await searches.ask("page", name=name, offset=sent.offset, limit=sent.limit, **query)
    hits = [
        {
            "rank": sent.offset + number,
            **{key: hit[key] for key in ("score", "row", "caption", "image_path")},
            "image": f"/search/{name}/images/{hit['row']}" if hit["has_image"] else None,
            "metadata": hit["metadata"],
        }
        for number, hit in enumerate(page["hits"], 1)
    ]
    after = sent.offset + sent.limit
    content = {
        "name": name,
        "model": page["model"],
        "rows": page["rows"],
        "hits": hits,
        "next_offset": after if page["more"] and after < MAX_HITS else None,
    }
    return respond(content, headers)


@router.get(
    "/{name}/images/{row}",
    response_class=Response,
    responses={
        200: {"content": {"image/*": {}}, "description": "The picture as it is in the source."},
        **errors(
            *(401, 404, 422, 429, 503, 504),
            _404="There is no search of that name, no such row, or no picture of it that is served (`no_picture`).",
        ),
    },
)
async def picture(request: Request, name: str, row: int) -> Response:
    """A row's picture: of a type that browsers show as pixels, and at most `max_image_bytes`."""
    authenticate(request, JobClient.of(request).settings)
    searches = searches_of(request)
    searches.check(name)
    _check_row(row)
    about_it, data = await searches.ask("picture", name=name, row=row)
    return Response(data, headers=PICTURE_HEADERS, media_type=about_it["type"])


def _check_row(row: int) -> None:
    if not 0 <= row < LARGEST_ROW:
        raise UnknownRow(f"There is no row {row}.")


async def _embedded(
    request: Request, client: JobClient, sent: SearchRequest, owner: str, output: dict[str, Any]
) -> tuple[Vector, str, dict[str, str]]:
    """The query's unit vector (dimension,), the fingerprint of who made it, and headers.

    Raises:
        OtherModel: no worker has the output's model.
        ClipError: what embedding raises.
    """
    settings, began = client.settings, time.monotonic()
    model = request.state.model = await _model(client, output)
    if sent.image is not None:
        values = several(sent.image)
        check_count("image", values, settings.max_items)
        items, kind = RequestItems(parse_images(values, settings.max_image_bytes, "image")), Kind.EMBED_IMAGE
    else:
        values = several(sent.text)
        check_count("text", values, settings.max_items)
        items, kind = RequestItems(parse_texts(values, settings.max_text_chars, "text")), Kind.EMBED_TEXT
    request.state.items = len(values)
    fetched = await client.fetch(items, FETCH_SHARE * settings.request_timeout)
    result = await chunks.embed(client, kind, model, fetched, owner, disconnected(request), began)
    return _mean(matrix(result)), result.fingerprint, about(model, result)


def _mean(rows: Matrix) -> Vector:
    """The mean direction (dimension,) of some vectors (n, dimension), of length 1."""
    mean = normalise(rows).astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if not np.isfinite(length) or length == 0:
        raise BadInput("The query has no direction: the model made zeros or NaN of it, or its parts cancel out.")
    direction: Vector = (mean / length).astype(np.float32)
    return direction


async def _model(client: JobClient, output: dict[str, Any]) -> str:
    """The served model that made an output's vectors, by its fingerprint, whatever it is called here."""
    same = [model.name for model in client.registry.models.values() if model.fingerprint == output["fingerprint"]]
    if same or output["model"] is None:  # None: the output cannot be read now; the process will say why
        return same[0] if same else await client.registry.resolve(None)
    name = await client.registry.resolve(output["model"])
    found = client.registry.models.get(name)
    if found is not None and found.fingerprint != output["fingerprint"]:
        raise OtherModel(
            f"The vectors of {output['name']!r} are of {output['model']!r} with fingerprint {output['fingerprint']}; "
            f"the workers serve {found.fingerprint}: other weights, precision or preprocessing. Serve that one, or "
            "embed the dataset again."
        )
    return name
