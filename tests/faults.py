"""The test's side of :mod:`tests.faulty`: the faults of a worker's forward passes, and what the passes computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pass:
    """A forward pass that has begun: its process, and its texts, with ``image`` in place of each image."""

    pid: int
    items: list[str]


class Faults:
    """A folder that faulty workers read at each pass."""

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

    def hold(self) -> None:
        """No pass ends until :meth:`clear`."""
        (self.folder / "hold").touch()

    def hang_images(self) -> None:
        """From now on, no decoding of an image ends."""
        (self.folder / "hang-images").touch()

    def die(self) -> None:
        """The next pass ends the batcher's thread."""
        (self.folder / "die").touch()

    def clear(self) -> None:
        """From now on there are no faults."""
        for name in ("delay", "poison", "hang", "hold", "hang-images", "die"):
            (self.folder / name).unlink(missing_ok=True)

    def passes(self) -> list[Pass]:
        """All passes so far."""
        log = self.folder / "passes"
        lines = log.read_text().splitlines() if log.exists() else []
        return [Pass(**json.loads(line)) for line in lines]

    def computed(self, text: str) -> int:
        """The number of times that a text was in a pass."""
        return sum(p.items.count(text) for p in self.passes())
