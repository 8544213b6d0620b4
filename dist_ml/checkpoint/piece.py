"""What a rank brings to a checkpoint."""

from dataclasses import dataclass

import torch

from dist_ml.placement import Region


@dataclass(frozen=True)
class Piece:
    """The box of a global tensor that this rank holds.

    Ranks that hold the same box of a name hold the same values: one of them writes it. The boxes
    of a name, over all ranks, must be the whole tensor without overlap.
    """

    name: str  # of the global tensor, such as "model/layers.0.weight"
    shape: tuple[int, ...]  # of the whole
    region: Region
    values: torch.Tensor  # of the region's shape; unchanged until saving returns or has copied it
