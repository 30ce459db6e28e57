"""The bodies that a client may send to the CLIP routes and to `/jobs`, and the items that they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from clip_queue.api.dataset_request import Deadline, EmbedDatasetJob
from clip_queue.api.items import Item, RequestItems, check_unicode, parse_images, parse_texts
from clip_queue.api.refused import with_name
from clip_queue.shared import comparison
from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.job import Kind, LongTexts, OnError
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings

# A red heart, 32 × 32 pixels: with it the examples at /docs are complete requests.
HEART = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgBAMAAACBVGfHAAAAGFBMVEX//////v7//P33y9HgQVXdLkXdLkTbIzvuA23MAAABMUlE"
    "QVR42o2RQUsCQRiGn5lZ0hVxNwMhpF21Ogheyg7RKerWqV/Z2b8Q4dV+QEi6EBuCObtRrpFOhx3NU/Sd5n3n+Zh5vw/+VVUfQDSt"
    "FE1EA6RvL/A5bADIUwQoxFe3s1/M3Hr3wl2RSbzWdWXvKvGOTsZnrQQlSp3Pxfzdebod+XE7Ron6pSi6hfY3u8Kd7MQyrI4BhA9Q"
    "aaYOAkBEgchflPYzXmIPayNvASRmO4RGCXG+2Oj0ZeYk6Tbx5ikTLilaaWq9mUJmm550aLQi02WLmFpfZxITTEMLPEYaBWmcI6bW"
    "9zQSVsEw1GDSQTQCBaTTpeeiD+5CnRum+nzzWig9uCNyg3k4aSQf97PfcNHAF8MA1gQmXB73ZlsGMvs0GgDHxk7KdgyWwEdnf+97"
    "M8IfPrdmBvECmgEAAAAASUVORK5CYII="
)

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
        {"type": "string", "description": "a URL if it begins with http, else base64"},
    ]
}
_MANY = {"anyOf": [*_ONE["anyOf"], {"type": "array", "items": _ONE}]}
_PROMPT = {"anyOf": [*_MANY["anyOf"], {"type": "object", "additionalProperties": _ONE}]}

# api.images checks images, and its messages are part of the API. These schemas are only documentation.
OneImage = Annotated[Any, WithJsonSchema(_ONE)]
Images = Annotated[Any, WithJsonSchema(_MANY)]
Prompt = Annotated[Any, WithJsonSchema(_PROMPT)]
Type = Literal["image", "text"]


class ClipRequest(BaseModel, ABC):
    """The body of a request. Other fields, such as ``api_key``, are ignored here."""

    model_config = ConfigDict(extra="ignore")
    kind: ClassVar[Kind]

    clip_version_id: StrictStr | None = Field(
        None, max_length=200, description="A model that is served. The default is the server's first model."
    )
    on_error: OnError = Field(
        OnError.FAIL,
        description="`fail`: one bad item fails the request; `skip`: the response has the good items, null in the "
        "place of a bad one, and `errors`. A comparison fails as a whole.",
    )

    @property
    def skip(self) -> bool:
        return self.on_error is OnError.SKIP

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images, texts or prompts it holds."""

    @abstractmethod
    def items(self, limits: Limits) -> RequestItems:
        """The items of the request, within ``limits``. Nothing is fetched here. Raises :class:`BadInput`."""


@dataclass(frozen=True)
class Limits:
    """How much one request may hold."""

    items: int  # images, or prompts
    texts: int
    text_chars: int
    image_bytes: int

    @classmethod
    def of_request(cls, settings: Settings) -> Limits:
        return cls(settings.max_items, settings.max_texts, settings.max_text_chars, settings.max_image_bytes)

    @classmethod
    def of_job(cls, settings: Settings) -> Limits:
        return cls(settings.max_job_items, settings.max_job_items, settings.max_text_chars, settings.max_image_bytes)


class EmbedImage(ClipRequest):
    kind = Kind.EMBED_IMAGE
    image: Images

    @property
    def count(self) -> int:
        return len(several(self.image))

    def items(self, limits: Limits) -> RequestItems:
        values = several(self.image)
        check_count("image", values, limits.items)
        return RequestItems(parse_images(values, limits.image_bytes, "image", skip=self.skip), skip=self.skip)


class TextRequest(ClipRequest, ABC):
    """A request that may have texts."""

    long_texts: LongTexts = Field(
        LongTexts.FAIL,
        description="What becomes of a text that is longer than the model takes: `fail`, or `cut`, so that its "
        "beginning is embedded.",
    )


class EmbedText(TextRequest):
    kind = Kind.EMBED_TEXT
    text: StrictStr | Annotated[list[StrictStr], Field(fail_fast=True)]

    @field_validator("text", mode="wrap")
    @classmethod
    def _of_strings(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """What :meth:`items` can judge text by text. Anything else is judged here, a list as far as its first error."""
        if isinstance(value, list) and (info.data.get("on_error") is OnError.SKIP or set(map(type, value)) <= {str}):
            return value
        return value if isinstance(value, str) else check(value)

    @property
    def count(self) -> int:
        return len(several(self.text))

    def items(self, limits: Limits) -> RequestItems:
        values = several(self.text)
        check_count("text", values, limits.texts)
        texts = parse_texts(values, limits.text_chars, "text", skip=self.skip, long_texts=self.long_texts)
        return RequestItems(texts, skip=self.skip, long_texts=self.long_texts)


class Compare(TextRequest):
    kind = Kind.COMPARE
    subject: OneImage
    subject_type: Type = "image"
    prompt: Prompt
    prompt_type: Type = "text"

    @property
    def count(self) -> int:
        return len(self._prompts()[1])

    def items(self, limits: Limits) -> RequestItems:
        names, values = self._prompts()
        check_count("prompt", values, limits.items)
        if isinstance(self.subject, list):
            raise BadInput("Field 'subject' must be one image or text, not a list.")
        for name in names or ():
            check_unicode(name, with_name("The name of a prompt", name))
        (subject,) = parse(self.subject_type, [self.subject], limits, "subject", self.long_texts)
        try:
            # Also a single one has an index: an error without one is the subject's.
            prompts = parse(self.prompt_type, values, limits, "prompt", self.long_texts, indexed=True)
        except ClipError as error:
            if names:
                error.message = with_name(error.message, names[error.index or 0])
            raise
        return RequestItems(comparison.join(subject, prompts), names, long_texts=self.long_texts)

    def _prompts(self) -> tuple[list[str] | None, list[object]]:
        prompt = self.prompt
        if isinstance(prompt, list):
            return None, prompt
        if isinstance(prompt, dict) and (self.prompt_type == "text" or not {"type", "value"} <= prompt.keys()):
            return list(prompt), list(prompt.values())
        return None, [prompt]


def parse(
    kind: Type, values: list[object], limits: Limits, field: str, long_texts: LongTexts, indexed: bool = False
) -> list[Item | ClipError]:
    """``values`` as images or texts. Raises :class:`BadInput`, whose message names the field."""
    if kind == "text":
        return parse_texts(values, limits.text_chars, field, indexed=indexed, long_texts=long_texts)
    return parse_images(values, limits.image_bytes, field, indexed=indexed)


def several(value: Any) -> list[Any]:
    """A list as it is, one value as a list of one."""
    return value if isinstance(value, list) else [value]


def check_count(field: str, values: Sized, limit: int) -> None:
    if not values:
        raise BadInput(f"Field '{field}' is empty: give at least one.")
    if len(values) > limit:
        raise BadInput(f"Field '{field}' holds {len(values)} items; at most {limit} fit in a request.")


# The settings decide which lanes a job may ask for, so api.jobs checks the value.
Priority = Annotated[Any, WithJsonSchema({"type": "string", "enum": [Lane.INTERACTIVE, Lane.BACKGROUND]})]


class JobOptions(BaseModel):
    """The fields of a job that the synchronous request of its kind does not have."""

    priority: Priority = Field(Lane.BACKGROUND, description="`interactive` only if the server's settings allow it.")
    deadline_s: Deadline | None = Field(None, description="Seconds until the job expires if it has not ended.")


class EmbedImageJob(JobOptions, EmbedImage):
    task: Literal["embed_image"]


class EmbedTextJob(JobOptions, EmbedText):
    task: Literal["embed_text"]


class CompareJob(JobOptions, Compare):
    task: Literal["compare"]


def known_task(value: Any) -> Any:
    """Refuse an unknown task. Pydantic's own message for it would quote the input."""
    if isinstance(value, dict) and value.get("task") not in TASKS:
        names = ", ".join(map(repr, TASKS[:-1]))
        raise PydanticCustomError("union_tag_invalid", f"'task' should be {names} or {TASKS[-1]!r}")
    return value


TASKS = ("embed_image", "embed_text", "compare", "embed_dataset")

ItemsJob = EmbedImageJob | EmbedTextJob | CompareJob
JobRequest = Annotated[ItemsJob | EmbedDatasetJob, Field(discriminator="task"), BeforeValidator(known_task)]
