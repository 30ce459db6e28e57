"""The inputs of an embeddings request: texts, and images in the forms of those who extended OpenAI's wire.

A string that is a data URI is an image (NVIDIA NIM, Haystack, infinity); ``modality`` says it of all strings
(infinity); an object has ``text``, ``image``, ``url``, ``bytes`` (Jina) or ``type`` and ``value`` (as `/clip`); a chat
message (vLLM) or ``content`` (Cohere) has parts, of which there must be exactly one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from clip_queue.api.images import is_data_uri, parse_image
from clip_queue.api.items import Item, RequestItems, json_type, parse_each, parse_text
from clip_queue.api.requests import check_count
from clip_queue.shared.errors import BadInput
from clip_queue.shared.fetch import ImageUrl
from clip_queue.shared.job import LongTexts
from clip_queue.shared.settings import Settings

TOKENS = (
    "holds numbers: arrays of tokens are not accepted, because they are those of another model's "
    "tokenizer. Send the text itself (LangChain: check_embedding_ctx_length=False)."
)
ONE_PART = "must hold exactly one part: CLIP makes one vector of one text or of one image, not one of both together."
FORMS = (
    "must be a text, a data URI of an image, or an object with one of text, image, url, bytes, content, or with type "
    "and value"
)
_KEYS = ("text", "image", "url", "bytes", "image_url", "content")  # where two stand in an object, they are two parts

_STRING = {"type": "string", "description": "a text; an image, if it is a data URI or `modality` says so"}
_PARTS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 1}],
    "description": "a text, or a list of one part, with `text` or `image_url`",
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_URL = {"anyOf": [{"type": "string"}, _object(url={"type": "string"})]}
_OBJECTS = [
    _object(text={"type": "string"}),
    _object(image={"type": "string", "description": "a URL, a data URI or base64"}),
    _object(url={"type": "string"}),
    _object(bytes={"type": "string", "description": "base64"}),
    _object(image_url=_URL),
    _object(content=_PARTS),
    _object(type={"type": "string"}, value={"type": "string"}),
]
_INPUT = {"anyOf": [_STRING, *_OBJECTS, {"type": "array", "minItems": 1, "items": {"anyOf": [_STRING, *_OBJECTS]}}]}
_MESSAGES = {"type": "array", "minItems": 1, "maxItems": 1, "items": _object(content=_PARTS)}


def _truncation(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """Pydantic would name only the first of the two forms to who sends another word, such as ``START``."""
    try:
        return read(value)
    except ValidationError:
        raise PydanticCustomError("literal_error", "Input should be true, false, 'NONE' or 'END'") from None


class EmbeddingsRequest(BaseModel):
    """Texts and images, mixed as you like; the vectors come in the same order. Other fields, such as `user`, are
    ignored.
    """

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"anyOf": [{"required": ["input"]}, {"required": ["inputs"]}, {"required": ["messages"]}]},
    )

    input: Annotated[Any, WithJsonSchema(_INPUT)] = None
    inputs: Annotated[Any, WithJsonSchema(_INPUT)] = Field(None, description="Another name of `input`.")
    messages: Annotated[Any, WithJsonSchema(_MESSAGES)] = Field(None, description="In its place: one chat message.")
    model: StrictStr | None = Field(
        None,
        max_length=200,
        description="A model that is served, or an alias. The default is the server's first model.",
    )
    modality: Literal["text", "image"] | None = Field(
        None, description="What each string is: `text`, or `image` (a URL, a data URI or base64)."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`base64`: the numbers as float32, little-endian."
    )
    embedding_type: Literal["float", "base64"] | None = Field(None, description="Another name of `encoding_format`.")
    dimensions: StrictInt | None = Field(None, description="Only that of the model: its vectors are not shortened.")
    truncate: Annotated[bool | Literal["NONE", "END"] | None, WrapValidator(_truncation)] = Field(
        None, description="`true` or `END`: of a text longer than the model takes, the beginning is embedded."
    )
    normalized: StrictBool | None = Field(None, description="`false`: the raw features, as `/clip` returns them.")

    @property
    def base64(self) -> bool:
        return (self.encoding_format or self.embedding_type) == "base64"

    @property
    def long_texts(self) -> LongTexts:
        return LongTexts.CUT if self.truncate in (True, "END") else LongTexts.FAIL

    @property
    def given(self) -> str:
        """The field that holds what is to be embedded. Raises :class:`BadInput`."""
        given = [name for name in ("input", "inputs", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadInput("Give one of the fields 'input' and 'messages'.")
        return given[0]

    @property
    def values(self) -> list[Any]:
        """What is to be embedded, as it was sent. Raises :class:`BadInput`."""
        name = self.given
        value = getattr(self, name)
        if name == "messages":
            if isinstance(value, list) and len(value) == 1:
                return value
            raise BadInput(f"Field 'messages' {ONE_PART}")
        values = value if isinstance(value, list) else [value]
        if any(type(v) in (int, float) for v in values[:1]) or (values and _numbers(values[0])):
            raise BadInput(f"Field '{name}' {TOKENS}")
        return values

    def items(self, values: list[Any], settings: Settings) -> RequestItems:
        """``values`` as items, within the limits of the settings. Nothing is fetched here. Raises :class:`BadInput`."""
        name = self.given
        check_count(name, values, settings.max_inputs)

        def parse(value: object, index: int) -> Item:
            several = len(values) > 1 or name == "messages"
            return self._item(value, f"{name}[{index}]" if several else name, settings)

        return RequestItems(parse_each(values, parse), long_texts=self.long_texts)

    def _item(self, value: object, field: str, settings: Settings) -> Item:
        if isinstance(value, str):
            if self.modality == "image" or (self.modality is None and is_data_uri(value)):
                return parse_image(value, settings.max_image_bytes, field)
            return parse_text(value, settings.max_text_chars, field, self.long_texts)
        if not isinstance(value, Mapping):
            raise BadInput(f"Field '{field}' holds {json_type(value)}; it {FORMS}.")
        if "value" in value:
            if value.get("type") == "text":
                return self._of("text", value["value"], f"{field}.value", settings)
            return parse_image(value, settings.max_image_bytes, field)
        given = {key: value[key] for key in _KEYS if value.get(key) is not None}
        if len(given) > 1:
            raise BadInput(f"Field '{field}' {ONE_PART}")
        for key, one in given.items():
            return self._of(key, one, f"{field}.{key}", settings)
        raise BadInput(f"Field '{field}' {FORMS}.")

    def _of(self, key: str, value: Any, field: str, settings: Settings) -> Item:
        """The item that an object has under one of :data:`_KEYS`."""
        if key == "content":
            if isinstance(value, str):
                return parse_text(value, settings.max_text_chars, field, self.long_texts)
            if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], Mapping):
                raise BadInput(f"Field '{field}' {ONE_PART}")
            part = {k: v for k, v in value[0].items() if k != "content"}  # parts do not nest
            return self._item(part, field, settings)
        if key == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        if not isinstance(value, str):
            raise BadInput(f"Field '{field}' must be a string; it holds {json_type(value)}.")
        if key == "text":
            return parse_text(value, settings.max_text_chars, field, self.long_texts)
        if key == "url" and not is_data_uri(value):
            return ImageUrl(value.strip())
        if key == "bytes":
            return parse_image({"type": "base64", "value": value}, settings.max_image_bytes, field)
        return parse_image(value, settings.max_image_bytes, field)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) in (int, float) for v in value[:4])


def tokens(texts: list[str], most: int | None) -> int:
    """About how many tokens texts have: their words, digits and marks, and two for each text's begin and end.

    Args:
        most: what the model takes of a text, if it is known; the rest is cut, or refused.
    """
    counts = [len(_PIECE.findall(text)) + 2 for text in texts]
    return sum(min(count, most) for count in counts) if most else sum(counts)


_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")
