"""The test's side of :mod:`tests.faulty`: which faults a worker's forward passes shall have, and what they computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pass:
    """A forward pass that was begun: by which process, on which texts (``image`` stands for each picture)."""

    pid: int
    items: list[str]


class Faults:
    """A folder that faulty workers look into at each pass."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)

    def delay(self, seconds: float) -> None:
        """Each pass takes this much longer."""
        (self.folder / "delay").write_text(str(seconds))

    def poison(self, text: str) -> None:
        """A pass with this text ends its process with SIGKILL."""
        (self.folder / "poison").write_text(text)

    def hang(self) -> None:
        """The next pass never ends."""
        (self.folder / "hang").touch()

    def die(self) -> None:
        """The next pass takes the batcher's thread with it."""
        (self.folder / "die").touch()

    def clear(self) -> None:
        for name in ("delay", "poison", "hang", "die"):
            (self.folder / name).unlink(missing_ok=True)

    def passes(self) -> list[Pass]:
        log = self.folder / "passes"
        lines = log.read_text().splitlines() if log.exists() else []
        return [Pass(**json.loads(line)) for line in lines]

    def computed(self, text: str) -> int:
        """How often a text went into a pass."""
        return sum(p.items.count(text) for p in self.passes())
