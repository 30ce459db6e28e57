"""What a step minimises."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SMOOTHING = 0.05
KEYWORD_WEIGHT = 0.7
PROTOTYPE_WEIGHT = 0.5


class Prototypes(nn.Module):
    """A table of one vector a concept, thrown away after training.

    It lets every image and every text be compared with all concepts in each step, not only with those
    that the batch happens to hold.
    """

    def __init__(self, concepts: int, dimension: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(concepts, dimension) * dimension**-0.5)

    @classmethod
    def of(cls, bank: Tensor, concept: np.ndarray, concepts: int) -> "Prototypes":
        """A table at the mean of each concept's images: bank, unit vectors [variants, N, D]; concept [N]."""
        table = cls(concepts, bank.shape[-1])
        means = [bank[:, np.flatnonzero(concept == index)].mean((0, 1)) for index in range(concepts)]
        table.table.data = functional.normalize(torch.stack(means), dim=-1)
        return table

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        """Unit vectors [B, D] → logits [B, concepts]."""
        return scale * features @ functional.normalize(self.table, dim=-1).T


def name_loss(logits: Tensor) -> Tensor:
    """Symmetric InfoNCE of image × name logits [B, B], the partners on the diagonal."""
    own = torch.arange(len(logits))
    rows = functional.cross_entropy(logits, own, label_smoothing=SMOOTHING)
    return (rows + functional.cross_entropy(logits.T, own, label_smoothing=SMOOTHING)) / 2


def keyword_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Symmetric InfoNCE of image × keyword logits [B, K] where several texts may fit: fits is 0 or 1, [B, K]."""
    return (spread_entropy(logits, fits) + spread_entropy(logits.T, fits.T)) / 2


def spread_entropy(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy to the even spread over what fits: both [B, N]."""
    wanted = fits / fits.sum(1, keepdim=True).clamp_min(1)
    return -(wanted * functional.log_softmax(logits, dim=1)).sum(1).mean()


def total_loss(
    image: Tensor,
    name: Tensor,
    keyword: Tensor,
    concepts: Tensor,
    meanings: Tensor,
    scale: Tensor,
    prototypes: Prototypes,
) -> Tensor:
    """The whole loss of a step.

    image, name: unit vectors [B, D]; keyword: [K, D]; concepts: int64 [B]; meanings: 0 or 1, [K, all concepts],
    what each keyword text fits.
    """
    loss = name_loss(scale * image @ name.T)
    loss = loss + KEYWORD_WEIGHT * keyword_loss(scale * image @ keyword.T, meanings[:, concepts].T)
    to_image, to_name, to_keyword = (prototypes(features, scale) for features in (image, name, keyword))
    return loss + PROTOTYPE_WEIGHT * (
        functional.cross_entropy(to_image, concepts, label_smoothing=SMOOTHING)
        + functional.cross_entropy(to_name, concepts, label_smoothing=SMOOTHING)
        + KEYWORD_WEIGHT * spread_entropy(to_keyword, meanings)
    )
