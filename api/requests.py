"""What a client may send to the CLIP routes, and the items that it comes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr, WithJsonSchema
from pydantic_core import PydanticCustomError

from clip_queue.shared.errors import BadInput, TextTooLong
from clip_queue.shared.job import Inputs, Kind, Lane, OnError
from clip_queue.shared.settings import Settings

# A red heart, 32 × 32, so that the examples at /docs run as they stand.
HEART = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgBAMAAACBVGfHAAAAGFBMVEX//////v7//P33y9HgQVXdLkXdLkTbIzvuA23MAAABMUlE"
    "QVR42o2RQUsCQRiGn5lZ0hVxNwMhpF21Ogheyg7RKerWqV/Z2b8Q4dV+QEi6EBuCObtRrpFOhx3NU/Sd5n3n+Zh5vw/+VVUfQDSt"
    "FE1EA6RvL/A5bADIUwQoxFe3s1/M3Hr3wl2RSbzWdWXvKvGOTsZnrQQlSp3Pxfzdebod+XE7Ron6pSi6hfY3u8Kd7MQyrI4BhA9Q"
    "aaYOAkBEgchflPYzXmIPayNvASRmO4RGCXG+2Oj0ZeYk6Tbx5ikTLilaaWq9mUJmm550aLQi02WLmFpfZxITTEMLPEYaBWmcI6bW"
    "9zQSVsEw1GDSQTQCBaTTpeeiD+5CnRum+nzzWig9uCNyg3k4aSQf97PfcNHAF8MA1gQmXB73ZlsGMvs0GgDHxk7KdgyWwEdnf+97"
    "M8IfPrdmBvECmgEAAAAASUVORK5CYII="
)

LoadImages = Callable[[list[object], str], Awaitable[list[bytes]]]  # values and the field they stand in

_ONE = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type", "value"],
            "properties": {
                "type": {"type": "string", "description": "`url` or `base64`, in any case"},
                "value": {"type": "string", "description": "an https URL; base64, with a data-URI prefix or without"},
            },
        },
        {"type": "string", "description": "a URL if it starts with http, else base64"},
    ]
}
_MANY = {"anyOf": [*_ONE["anyOf"], {"type": "array", "items": _ONE}]}
_PROMPT = {"anyOf": [*_MANY["anyOf"], {"type": "object", "additionalProperties": _ONE}]}

# Pictures are checked by api.images, whose messages are the documented ones; these schemas are for readers.
OneImage = Annotated[Any, WithJsonSchema(_ONE)]
Images = Annotated[Any, WithJsonSchema(_MANY)]
Prompt = Annotated[Any, WithJsonSchema(_PROMPT)]
Type = Literal["image", "text"]


class ClipRequest(BaseModel, ABC):
    """Other keys, ``api_key`` among them, are accepted and not looked at here."""

    model_config = ConfigDict(extra="ignore")
    kind: ClassVar[Kind]

    clip_version_id: StrictStr | None = Field(
        None, max_length=200, description="A model that is served; by default the server's first."
    )

    @abstractmethod
    async def inputs(self, limits: Limits, load: LoadImages) -> Inputs:
        """The items, with their pictures loaded. Raises :class:`BadInput` and what ``load`` raises."""


class Limits(BaseModel):
    """How much one request may hold."""

    items: int  # images, or prompts
    texts: int
    text_chars: int

    @classmethod
    def of_request(cls, settings: Settings) -> Limits:
        return cls(items=settings.max_items, texts=settings.max_texts, text_chars=settings.max_text_chars)

    @classmethod
    def of_job(cls, settings: Settings) -> Limits:
        most = settings.max_job_items
        return cls(items=most, texts=most, text_chars=settings.max_text_chars)


class EmbedImage(ClipRequest):
    kind = Kind.EMBED_IMAGE
    image: Images

    async def inputs(self, limits: Limits, load: LoadImages) -> Inputs:
        values = self.image if isinstance(self.image, list) else [self.image]
        count("image", values, limits.items)
        return Inputs(list(await load(values, "image")))


class EmbedText(ClipRequest):
    kind = Kind.EMBED_TEXT
    text: StrictStr | list[StrictStr]

    async def inputs(self, limits: Limits, load: LoadImages) -> Inputs:  # noqa: ARG002
        values: list[object] = list(self.text) if isinstance(self.text, list) else [self.text]
        count("text", values, limits.texts)
        return Inputs(list(texts("text", values, limits)))


class Compare(ClipRequest):
    kind = Kind.COMPARE
    subject: OneImage
    subject_type: Type = "image"
    prompt: Prompt
    prompt_type: Type = "text"

    async def inputs(self, limits: Limits, load: LoadImages) -> Inputs:
        names, values = self._prompts()
        count("prompt", values, limits.items)
        if isinstance(self.subject, list):
            raise BadInput("Field 'subject' must be one image or text, not a list.")
        subject: list[bytes | str] = []
        if self.subject_type == "text":
            subject += texts("subject", [self.subject], limits)
        else:
            subject += await load([self.subject], "subject")
        if self.prompt_type == "text":
            return Inputs([*subject, *texts("prompt", values, limits)], names)
        return Inputs([*subject, *await load(values, "prompt")], names)

    def _prompts(self) -> tuple[list[str] | None, list[object]]:
        prompt = self.prompt
        if isinstance(prompt, list):
            return None, prompt
        if isinstance(prompt, dict) and not {"type", "value"} <= prompt.keys():
            return list(prompt), list(prompt.values())
        return None, [prompt]


def count(field: str, values: list[object], limit: int) -> None:
    if not values:
        raise BadInput(f"Field '{field}' is empty: give at least one.")
    if len(values) > limit:
        raise BadInput(f"Field '{field}' holds {len(values)} items; at most {limit} fit in a request.")


def texts(field: str, values: list[object], limits: Limits) -> list[str]:
    """``values`` as texts. Raises :class:`BadInput` naming the field."""
    out: list[str] = []
    for index, value in enumerate(values):
        place = index if len(values) > 1 else None
        if not isinstance(value, str):
            raise BadInput(f"Field '{field}' must hold text here; it holds {json_type(value)}.", index=place)
        if len(value) > limits.text_chars:
            raise TextTooLong(
                "Text input is too long for the model context length: "
                f"{len(value)} characters, {limits.text_chars} at most.",
                index=place,
            )
        out.append(value)
    return out


def json_type(value: object) -> str:
    """A value's type in a caller's words."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(value), "something else")


# Which lanes there are is the settings' to say, so api.jobs checks the word and lists them.
Priority = Annotated[Any, WithJsonSchema({"type": "string", "enum": [Lane.INTERACTIVE, Lane.BACKGROUND]})]


class JobOptions(BaseModel):
    """What a job may ask for beyond the synchronous request of its kind."""

    on_error: OnError = Field(
        OnError.FAIL, description="`fail`: one bad item fails the job; `skip`: the good ones are answered all the same."
    )
    priority: Priority = Field(Lane.BACKGROUND, description="`interactive` only where the server's settings allow it.")
    deadline_s: float | None = Field(None, gt=0, le=30 * 86400, description="Seconds until the job expires unfinished.")


class EmbedImageJob(JobOptions, EmbedImage):
    task: Literal["embed_image"]


class EmbedTextJob(JobOptions, EmbedText):
    task: Literal["embed_text"]


class CompareJob(JobOptions, Compare):
    task: Literal["compare"]


def known_task(value: Any) -> Any:
    """Refuse a job of no such task; pydantic's own words for it would quote what was sent."""
    if isinstance(value, dict) and value.get("task") not in ("embed_image", "embed_text", "compare"):
        raise PydanticCustomError("union_tag_invalid", "'task' should be 'embed_image', 'embed_text' or 'compare'")
    return value


JobRequest = Annotated[
    EmbedImageJob | EmbedTextJob | CompareJob, Field(discriminator="task"), BeforeValidator(known_task)
]
