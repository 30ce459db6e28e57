"""A console whose output a test can read."""

from __future__ import annotations

import io

from rich.console import Console


def console(*, terminal: bool = False, width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def printed(on: Console) -> str:
    """All that was printed."""
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()
