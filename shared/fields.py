"""Reading data that another release may have written."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def known_fields(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The values of ``raw`` that are fields of the dataclass ``kind``. Fields of a later release are ignored."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}
