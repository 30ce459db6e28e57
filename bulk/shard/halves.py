"""The two halves of a row, its image and its text: neither takes the other down. Zeros stand for what is not there."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from clip_queue.bulk.output.manifest import RunPlan
from clip_queue.shared.errors import BadInput, ClipError, TextTooLong, check_text_length
from clip_queue.shared.vectors import Matrix, Pixels, Tokens
from clip_queue.sources.source import IMAGE_HALF, TEXT_HALF, Row
from clip_queue.worker.inference.clip_model import ClipModel


@dataclass(slots=True)
class Prepared:
    """A row while it is read and decoded, and then as the model takes it."""

    row: Row
    loaded: bool = False  # reading is over, decoding may still be under way
    pixels: Pixels | None = None
    tokens: Tokens | None = None
    cut: bool = False  # whether its text was longer than the model takes
    ready: Future[None] = field(default_factory=Future)


@dataclass(slots=True)
class Embedded:
    """Rows that were embedded, in the source's order, with their vectors (n, dimension) by kind, zeros where a row has
    no such half or that is at fault, and how many of their texts were cut; or one row that failed."""

    rows: list[Row] = field(default_factory=list)
    vectors: dict[str, Matrix] = field(default_factory=dict)
    failed: tuple[Row, ClipError] | None = None
    cut: int = 0


def take_text(item: Prepared, plan: RunPlan, model: ClipModel, max_chars: int) -> None:
    """Make tokens of the text of a row whose image is ready, or at fault.

    Raises:
        ClipError: neither half of the row can be embedded.
    """
    text, faults = item.row.text, item.row.faults
    if plan.source.texts and text is not None:
        try:
            check_text_length(text, max_chars)
            item.tokens = model.tokenizer(text)
        except TextTooLong as error:
            if plan.options.long_texts == "cut":
                item.tokens, item.cut = model.tokenizer.cut(text[:max_chars]), True
            else:
                faults[TEXT_HALF] = error
        except ClipError as error:
            faults[TEXT_HALF] = error
    if item.pixels is None and item.tokens is None:
        reasons = [faults[half] for half in (IMAGE_HALF, TEXT_HALF) if half in faults]
        raise reasons[0] if reasons else BadInput("The row has no text.")


def filled(found: Matrix | None, there: list[bool], dimension: int) -> Matrix:
    """The vectors of a batch (n, dimension), of those of the rows that have any: ``there`` says which."""
    if found is not None and all(there):
        return found
    full = np.zeros((len(there), dimension), dtype=np.float32)
    if found is not None:
        full[there] = found
    return full
