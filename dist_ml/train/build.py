"""From a configuration to objects: the only place that knows which class implements which
choice.
"""

import torch

from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets import open_dataset
from dist_ml.errors import ConfigError
from dist_ml.models import build_model, choose_loss
from dist_ml.nn.linear import tune, use_kernel
from dist_ml.train.exchange import build_exchange
from dist_ml.train.optimizer import build_lr_schedule
from dist_ml.train.trainer import Rules, Trainer

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32}


def build_mesh(config: TrainConfig, world: Communicator) -> Mesh:
    """The mesh of the configuration over all ranks; errors are the same on all of them."""
    if config.ranks not in (None, world.size):
        raise ConfigError(
            f"ranks={config.ranks}, but {world.size} were started; start {config.ranks}, or leave "
            "ranks=null"
        )
    world = world.with_checks() if config.comm.checked else world
    sizes = {
        "data": config.mesh.data,
        "pipeline": config.mesh.pipeline,
        "operator": config.mesh.operator,
    }
    return Mesh(world, sizes)


def build_trainer(config: TrainConfig, mesh: Mesh) -> Trainer:
    """Everything that a training run needs. Mistakes that only some ranks can see, like a missing
    file, are raised by all.
    """
    comm = mesh.axis("data").comm
    with raise_on_all_ranks(comm):
        dtype = DTYPES[config.precision]
        dataset = open_dataset(config.data, dtype)
        train = dataset.train
        model = build_model(config.model, train.num_features, train.num_outputs, config.seed, dtype)
        use_kernel(model, config.kernel)
        loss = choose_loss(config.model, train.task)
        sampler = GlobalSampler(train.num_samples, config.batch_size, config.seed)
        num_steps = config.epochs * sampler.steps_per_epoch
    exchange = build_exchange(config, model, comm, num_steps)
    tune(model, {-(-config.batch_size // (comm.size * config.accumulation))}, comm)
    return Trainer(
        model=model,
        loss=loss,
        dataset=dataset,
        sampler=sampler,
        gradients=exchange.gradients,
        reducer=exchange.reducer,
        optimizer=exchange.optimizer,
        schedule=build_lr_schedule(config.lr_schedule, exchange.optimizer, num_steps),
        comm=comm,
        rules=Rules(
            config.accumulation, config.precision == "bf16", config.clip_norm, config.nonfinite
        ),
    )
