"""Which runs can go on from the memory of the ranks that are left."""

import math
from collections.abc import Mapping

from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.train.own import Own


def check_recovery(config: TrainConfig, sizes: Mapping[str, int], own: Own) -> None:
    """`ConfigError` for fault.recover=shrink where a dead rank takes along what no other has, or a
    step can't be done again.
    """
    if config.fault.recover == "none":
        return
    if own != Own():
        raise ConfigError(
            "fault.recover=shrink does a step again that a death broke off, and what a program's "
            "own model or samples changed in it can't be taken back; use fault.recover=none"
        )
    shards, evenly = config.reproduce.shards, math.lcm(*range(1, sizes["data"] + 1))
    if shards is not None and shards % evenly:
        raise ConfigError(
            f"reproduce.shards={shards} can't be dealt evenly to every number of replicas up to "
            f"{sizes['data']}, as many as fault.recover=shrink may leave; use a multiple of "
            f"{evenly}, or fault.recover=none"
        )
    for axis, share in (("pipeline", "stages"), ("operator", "parts of layers")):
        if sizes[axis] > 1:
            raise _lost(f"mesh.{axis}={sizes[axis]}", f"its {share}", f"mesh.{axis}=1")
    exchange = config.data_parallel.name
    if exchange in ("zero1", "zero2"):
        raise _lost(f"data_parallel={exchange}", "its shard of the optimizer's state", _DENSE)
    if exchange != "dense":
        raise _lost(f"data_parallel={exchange}", "the parameters of its own local steps", _DENSE)
    if config.sparse.allreduce != "none":
        what = "its residual, the part of its gradients that is not sent yet"
        raise _lost(f"sparse.allreduce={config.sparse.allreduce}", what, "sparse=none")


_DENSE = "data_parallel=dense"


def _lost(setting: str, what: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"fault.recover=shrink can't go on from memory with {setting}: a rank that dies takes "
        f"along {what}; use {remedy}, or fault.recover=none with checkpoint=steps and resume=auto"
    )
