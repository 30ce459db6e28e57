"""The numbers of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; the defaults made the checkpoint."""

    steps: int = 5752
    minutes: float | None = None  # when given, the rate falls early enough to end by then; `steps` is the most
    threads: int | None = None  # of torch; on a shared machine one is steadier than all (default: all)
    again_steps: int = 3000  # of the second round of both towers, from the average of the first
    again_rate: float = 1e-3
    cooling: float = 0.4  # share of the steps in which the rate falls to nothing
    batch: int = 128  # distinct concepts a step
    rate: float = 2e-3
    warm_up: int = 100  # steps
    decay: float = 0.05  # of matrices; not of the word table, biases and norms
    average: float = 0.998  # share of the averaged weights that stays at each step
    seed: int = 0
    monochrome_share: float = 0.5  # how often a black drawing is taken, against a coloured one
    compile: bool = True  # the image tower, by torch.compile (needs a C++ compiler)
    save_every: int = 500  # steps between interim exports
    text_steps: int = 1200  # of the text tower alone, after the others
    text_rate: float = 1e-3
    text_strays: float = 0.25  # share of known words among the words beside a name, there
    text_share: float = 0.5  # of what that second stage learnt; the rest stays as the first stage had it
