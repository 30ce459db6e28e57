"""The body that asks for a run over a dataset: ``{"task": "embed_dataset", "source": …, "output": …}`` and options.

The options are those of :func:`clip_queue.embed`, which this layer does not know: a test compares the two.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Kind
from clip_queue.shared.roots import OutsideRoots, check_output, check_source
from clip_queue.shared.runs import RunRequest, check_sources
from clip_queue.shared.settings import Settings

MAX_SOURCES = 1024  # paths in a list
OWN = frozenset({"task", "api_key", "source", "output", "deadline_s"})  # fields that are no options


def no_bool(value: Any) -> Any:
    """A number is wanted, and JSON's true is none."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


# The bounds stand within, or the schema at /docs would not have them.
Deadline = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False), BeforeValidator(no_bool)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), BeforeValidator(no_bool)]


class EmbedDatasetJob(BaseModel):
    """A run over a dataset, which the workers lead. An option that is left out, or null, has its default.

    A field that is not listed is refused: a run for which it was forgotten would be another one. A run has no
    `priority`, it takes what requests and jobs leave; and no `on_error`, a row that fails never takes others down.
    """

    model_config = ConfigDict(extra="forbid")
    kind: ClassVar[Kind] = Kind.EMBED_DATASET

    task: Literal["embed_dataset"]
    api_key: Annotated[Any, Field(exclude=True)] = None
    source: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_SOURCES)] = Field(
        description="A path, pattern or URL, or several paths, as the workers see it; in one of `bulk_sources`."
    )
    output: StrictStr = Field(description="A folder, path or URL, below one of `bulk_outputs`.")
    deadline_s: Deadline | None = Field(None, description="Seconds until the run expires if it has not ended.")

    model: StrictStr | None = Field(None, max_length=200, description="The name of a model that is served.")
    format: StrictStr | None = Field(None, max_length=40, description="Unset: from what the source holds.")
    image_column: StrictStr | None = Field(None, max_length=1000, description="Unset: by name.")
    text_column: StrictStr | None = Field(None, max_length=1000, description="Unset: by name.")
    columns: StrictStr | None = Field(
        None, max_length=100_000, description="Of the source's own columns, those that the metadata keep: `a,b`."
    )
    delimiter: StrictStr | None = Field(None, max_length=20, description="Of csv.")
    quoting: StrictBool | None = Field(None, description="Whether quotes in csv are quotes.")
    encoding: StrictStr | None = Field(None, max_length=40, description="Of csv, jsonl and txt; unset: UTF-8.")
    image_root: StrictStr | None = Field(
        None, description="Folder that a table's image paths are relative to; in one of `bulk_sources`."
    )
    images: StrictBool | None = Field(None, description="Embed images; unset: if there are any.")
    texts: StrictBool | None = Field(None, description="Embed texts; unset: if there are any.")
    long_texts: Literal["fail", "cut"] | None = Field(None, description="Texts longer than the model takes.")
    shard_size: StrictInt | None = Field(None, ge=1, le=10_000_000, description="Rows an output file.")
    batch_size: StrictInt | None = Field(None, ge=1, le=4096, description="Rows a forward pass.")
    dtype: Literal["float16", "float32"] | None = Field(None, description="Of the stored vectors.")
    limit: StrictInt | None = Field(None, ge=1, le=1_000_000_000, description="Only so many rows, the first.")
    sample: Share | None = Field(None, description="Each row with this probability.")
    seed: StrictInt | None = Field(None, ge=0, le=2**31 - 1, description="Of the sample.")
    layout: Literal["clip-retrieval", "table"] | None = Field(None, description="Of the output.")
    update: StrictBool | None = Field(
        None, description="Of a finished output: embed what is new or changed in the source, drop what is gone."
    )
    retry_failed: StrictBool | None = Field(
        None, description="Of a finished output: embed the shards with rows that failed again."
    )
    normalize: StrictBool | None = Field(None, description="Vectors of length 1, or raw.")

    def request(self, settings: Settings) -> RunRequest:
        """What the workers are asked for, as far as its text tells that it is allowed.

        Raises:
            OutsideRoots: the settings allow no such run, or not this one.
            BadInput: a path could lead elsewhere than it seems to.
        """
        for setting in ("bulk_sources", "bulk_outputs"):
            if not getattr(settings, setting):
                raise OutsideRoots(
                    f"This service embeds no datasets: setting {setting} (CLIP_QUEUE_{setting.upper()}) allows none."
                )
        given = [self.source] if isinstance(self.source, str) else self.source
        sources = [check_source(each, settings.bulk_sources) for each in given]
        check_sources(sources)
        options = {name: value for name, value in self.model_dump(exclude=set(OWN)).items() if value is not None}
        if self.image_root is not None:
            options["image_root"] = check_source(self.image_root, settings.bulk_sources, "image_root")
        if self.seed is not None and self.sample is None:
            raise BadInput("Field 'seed' is of a sample, and none is asked for (field 'sample').")
        return RunRequest(sources, check_output(self.output, settings.bulk_outputs, sources), options)
