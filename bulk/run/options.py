"""The options of a run: each once, with its type, its limits and its help text.

:func:`clip_queue.embed` and :func:`clip_queue.dry_run` take the options as keywords, ``clip-queue embed`` as flags.
This module needs no package of an extra, so that the command can show its help without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from clip_queue.sources import registry


@dataclass(frozen=True)
class Option:
    """An option of a run. ``flags``: the two flags of a switch; ``least`` and ``most`` bound a number."""

    help: str
    flags: str = ""
    least: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()


class EmbedOptions(TypedDict, total=False):
    """The options of a run; None, as leaving one out: the default, or what the run that is resumed has."""

    format: Annotated[str | None, Option(f"{registry.listed()}; unset: from what the source holds.")]
    model: Annotated[str | None, Option("Model, NAME or NAME=SOURCE; unset: CLIP_QUEUE_MODELS' first.")]
    image_column: Annotated[
        str | None,
        Option("Column of a table with images, paths or URLs; NAME[0]: of lists, the first; unset: by name."),
    ]
    text_column: Annotated[str | None, Option("Column of a table with texts; unset: by name.")]
    columns: Annotated[
        str | None,
        Option(
            "Of the source's own columns, those that the metadata keep: NAME,NAME (in Python a list too); of tars, "
            "keys of their .json. Unset: all."
        ),
    ]
    delimiter: Annotated[str | None, Option("Of csv, a character or `tab`; unset: of , ; tab | the likeliest.")]
    quoting: Annotated[
        bool | None,
        Option(
            "Whether quotes in csv are quotes, or characters as any other. [default: quoting]", "--quoting/--no-quoting"
        ),
    ]
    encoding: Annotated[str | None, Option("Of csv, jsonl and txt: cp1252, utf-16, …; unset: UTF-8.")]
    image_root: Annotated[
        str | None, Option("Folder that a table's image paths are relative to; unset: that of the table.")
    ]
    images: Annotated[bool | None, Option("Embed images; unset: if there are any.", flags="--images/--no-images")]
    texts: Annotated[bool | None, Option("Embed texts; unset: if there are any.", flags="--texts/--no-texts")]
    long_texts: Annotated[
        str | None,
        Option(
            "Texts longer than the model takes: fail (zeros stand for them, and the report counts them) or cut. "
            "[default: fail]",
            choices=("fail", "cut"),
        ),
    ]
    shard_size: Annotated[
        int | None,
        Option(
            "Rows an output file; unset: 10000, or less where that would make fewer than 64 files. A tar is always a "
            "file of its own.",
            least=1,
            most=10_000_000,
        ),
    ]
    batch_size: Annotated[
        int | None,
        Option(
            "Rows a forward pass; unset: 256 on a GPU, 32 on a CPU, 8 on one whose workers may have requests.",
            least=1,
            most=4096,
        ),
    ]
    dtype: Annotated[
        str | None,
        Option("Of the stored vectors, float16 or float32. [default: float16]", choices=("float16", "float32")),
    ]
    limit: Annotated[
        int | None, Option("For a first look: embed only so many rows, the first.", least=1, most=1_000_000_000)
    ]
    sample: Annotated[
        float | None,
        Option("For a first look: embed each row with this probability, such as 0.01; of tars, each tar."),
    ]
    seed: Annotated[int | None, Option("Another one draws another sample. [default: 0]", least=0, most=2**31 - 1)]
    layout: Annotated[
        str | None,
        Option(
            "Of the output: clip-retrieval (.npy and parquet) or table (parquet alone, for databases). "
            "[default: clip-retrieval]",
            choices=("clip-retrieval", "table"),
        ),
    ]
    update: Annotated[
        bool | None,
        Option(
            "Of a finished output: embed what is new or changed in the source, drop what is gone, keep all else.",
            flags="--update",
        ),
    ]
    retry_failed: Annotated[
        bool | None,
        Option("Of a finished output: embed the shards with rows that failed again.", flags="--retry-failed"),
    ]
    normalize: Annotated[
        bool | None, Option("Vectors of length 1, or raw. [default: normalize]", flags="--normalize/--raw")
    ]


def options() -> dict[str, tuple[Any, Option]]:
    """Each option's type and description, by name."""
    hints = get_type_hints(EmbedOptions, include_extras=True)
    return {name: (get_args(hint)[0], get_args(hint)[1]) for name, hint in hints.items()}
