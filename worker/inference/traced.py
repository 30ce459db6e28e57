"""A tower as one call, whose operations torch's own interpreter runs without holding Python's lock.

Called one by one from Python, each operation gives the lock back and then waits for it, up to 5 ms if another thread
computes in Python: a pass of a hundred operations beside one such thread takes a hundred times as long as alone. As one
call it waits once. It is quicker alone, too, and computes the same bits.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import nn

log = logging.getLogger(__name__)

Tower = Callable[[torch.Tensor], torch.Tensor]  # a batch to its features (n, dimension)


class _Recorded(nn.Module):
    """A tower as a module without parts: of a tower with hundreds of them most of the time goes into reading each one.

    The weights are its buffers, so that they are parts of what is recorded and not constants in it; oneDNN's own order
    cannot be a constant.
    """

    def __init__(self, tower: Tower, owner: nn.Module) -> None:
        super().__init__()
        self._tower = [tower]  # in a list a module is no part
        for number, tensor in enumerate([*owner.parameters(), *owner.buffers()]):
            self.register_buffer(f"_{number}", tensor)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self._tower[0](batch)


@torch.inference_mode()
def traced(tower: Tower, owner: nn.Module, batch: torch.Tensor, other: torch.Tensor) -> Tower:
    """A tower as one call, or the tower itself where that cannot be made or does not compute the same bits.

    Args:
        owner: the module that has the tower's weights.
        batch: what the operations are recorded with; more than one row, so that nothing is recorded of one alone.
        other: a batch of another size, to see that no size was recorded as a constant.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated; what shall replace it needs a compiler at run time
            one_call: Tower = torch.jit.trace(_Recorded(tower, owner), (batch,), check_trace=False)
        same = all(torch.equal(one_call(each), tower(each)) for each in (batch, other))
    except Exception as error:  # of many kinds, by what a tower does; a release of torch may have no tracing any more
        log.info("a tower's operations are called one by one: %s", type(error).__name__)
        return tower
    if not same:
        log.info("a tower's operations are called one by one: as one call they computed something else")
        return tower
    return one_call
