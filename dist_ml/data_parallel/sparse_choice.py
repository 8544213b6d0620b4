"""From the configuration of sparse gradients to one that can be built: checked, `auto` chosen."""

import dataclasses

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import Settings, check, fastest
from dist_ml.comm.sparse.probe import probe
from dist_ml.config.names import require_one_of
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.selection import SELECTIONS, count_of


def sparse_config(sparse: float | SparseConfig | None) -> SparseConfig:
    """What users pass as `sparse`: nothing, a share of the elements, or all settings."""
    if sparse is None:
        return SparseConfig()
    if isinstance(sparse, SparseConfig):
        return sparse
    return SparseConfig(allreduce="auto", density=sparse)


def resolve(
    config: SparseConfig, length: int, comm: Communicator, dtype: str = "float32"
) -> SparseConfig:
    """`config` with `auto` replaced by what the cost model, measured now, finds fastest; "none"
    where that is dense.

    `length` elements of `dtype` are exchanged over `comm`. Collective where `auto` has to measure.
    `ConfigError` on all ranks for an unknown name, and for a setting that the chosen sum does not
    read.
    """
    if config.allreduce == "none":
        return config
    require_one_of("sparse.selection", config.selection, SELECTIONS)
    settings = exchange_settings(config, dtype)
    if config.selection == "threshold":  # reads it, too
        settings = dataclasses.replace(settings, threshold_steps=Settings.threshold_steps)
    check(config.allreduce, settings)
    if config.allreduce != "auto":
        return config
    name = "dense"
    if comm.size > 1:
        k = count_of(config.density, length)
        name = fastest(length, k, comm.size, exchange_settings(config, dtype), probe(comm))
    return dataclasses.replace(config, allreduce="none" if name == "dense" else name)


def exchange_settings(config: SparseConfig, dtype: str, seed: int = 0) -> Settings:
    """The settings of the sparse allreduce that it holds."""
    return Settings(
        dtype,
        config.values,
        config.qsgd_bits,
        config.repartition_steps,
        config.threshold_steps,
        seed,
    )
