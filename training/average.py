"""A moving average of weights."""

import torch
from torch import nn


class Average:
    """The moving average of a model's weights and running statistics; it is what is exported."""

    def __init__(self, model: nn.Module, keep: float) -> None:
        self._keep, self._step = keep, 0
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self._step += 1
        keep = min(self._keep, (1 + self._step) / (10 + self._step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - keep)
            else:
                self.state[key].copy_(value)
