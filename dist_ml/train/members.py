"""The members of the families that a configuration chooses: known by name, and reading every key
that is set.
"""

from dist_ml.comm.allreduce.family import ALLREDUCES
from dist_ml.comm.sparse.family import SPARSE_ALLREDUCES
from dist_ml.config.combinations import check_combination
from dist_ml.config.names import OWN, require_one_of
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.selection import SELECTIONS
from dist_ml.models import MODELS
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES
from dist_ml.train.exchange import DATA_PARALLEL
from dist_ml.train.optimizer import LR_SCHEDULES, OPTIMIZERS


def check_members(config: TrainConfig) -> None:
    """`ConfigError` for a name that a family doesn't hold, and for a key that is set and has no
    effect in this combination.
    """
    for key, name, family in (
        ("model.name", config.model.name, (*MODELS, OWN)),
        ("data_parallel.name", config.data_parallel.name, DATA_PARALLEL),
        ("allreduce.name", config.allreduce.name, ALLREDUCES),
        ("sparse.allreduce", config.sparse.allreduce, ("none", "auto", *SPARSE_ALLREDUCES)),
        ("sparse.selection", config.sparse.selection, SELECTIONS),
        ("optimizer.name", config.optimizer.name, OPTIMIZERS),
        ("lr_schedule.name", config.lr_schedule.name, LR_SCHEDULES),
        ("pipeline.name", config.pipeline.name, SCHEDULES),
    ):
        require_one_of(key, name, family)
    check_combination(config, keys_read(config))


def keys_read(config: TrainConfig) -> set[str]:
    """The keys that the chosen members read, beside those that all read."""
    data_parallel = DATA_PARALLEL[config.data_parallel.name].reads
    read = {
        *data_parallel,
        *(MODELS[config.model.name].reads if config.model.name != OWN else ()),
        *OPTIMIZERS[config.optimizer.name].reads,
        *LR_SCHEDULES[config.lr_schedule.name].reads,
        *(f"pipeline.{key}" for key in SCHEDULES[config.pipeline.name].reads),
    }
    if "allreduce.name" in data_parallel:
        read |= {f"allreduce.{key}" for key in ALLREDUCES[config.allreduce.name].reads}
    if "sparse.allreduce" in data_parallel and config.sparse.allreduce != "none":
        # auto may choose any of them
        members = SPARSE_ALLREDUCES if config.sparse.allreduce == "auto" else ()
        for name in members or (config.sparse.allreduce,):
            read |= {f"sparse.{key}" for key in SPARSE_ALLREDUCES[name].reads}
        if config.sparse.selection == "threshold":
            read.add("sparse.threshold_steps")
    return read
