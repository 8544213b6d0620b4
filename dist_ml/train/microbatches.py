"""Into how many pieces a replica's share of a batch is cut, and how large they are."""

from collections.abc import Mapping

from dist_ml.config.train import TrainConfig


def num_microbatches(config: TrainConfig, mesh_sizes: Mapping[str, int]) -> int:
    """Of a step, for each replica of the model."""
    num_stages = mesh_sizes["pipeline"]
    return config.accumulation if num_stages == 1 else config.pipeline.num_microbatches(num_stages)


def largest_microbatch(config: TrainConfig, mesh_sizes: Mapping[str, int], num_samples: int) -> int:
    """Samples of the largest micro-batch of any replica, of `num_samples` to train on."""
    pieces = mesh_sizes["data"] * num_microbatches(config, mesh_sizes)
    return -(-min(config.batch_size, num_samples) // pieces)
