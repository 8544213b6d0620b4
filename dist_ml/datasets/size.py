"""What a batch takes of memory, told before it is made."""

import torch

from dist_ml.datasets.dataset import Split
from dist_ml.errors import ConfigError
from dist_ml.measure.memory import physical_bytes, spell_bytes


def require_share_fits(num_samples: int, split: Split, dtype: torch.dtype) -> None:
    """`ConfigError` where the inputs of `num_samples`, which a rank computes at once, are more than
    this machine's memory.
    """
    needed, memory = num_samples * split.num_features * dtype.itemsize, physical_bytes()
    if needed > memory:
        raise ConfigError(
            f"{num_samples} samples of {split.num_features} features, a rank's share of a batch, "
            f"take {spell_bytes(needed)}, but this machine has {spell_bytes(memory)}; lower "
            "batch_size, or compute it in more pieces with a larger accumulation"
        )
