"""The words that each axis of the mesh moves in a step, told from sizes alone: what a run's summary
puts beside those that its ledger holds.

    data       2 (D-1)/D of what a rank holds, as gradients that are summed densely or sharded; in
               a fixed tree what data_parallel/tree_exchange.py says
    pipeline   what leaves this rank along the edges of its stages, both ways, and the gradients of
               parameters that stages share
    operator   the layers' closed forms (operator_parallel/words.py) and the objective's
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from torch import nn

from dist_ml.comm.mesh import Mesh
from dist_ml.comm.traffic import allreduce_words
from dist_ml.config.train import TrainConfig
from dist_ml.data_parallel import tree_exchange
from dist_ml.models import BlockModel, Objective
from dist_ml.models.blocks import Block
from dist_ml.operator_parallel.objective import ParallelObjective
from dist_ml.operator_parallel.words import SharedLayer
from dist_ml.partition import block
from dist_ml.pipeline_parallel.message_keys import used_by
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.stage_graph import Place, Shape, Stage
from dist_ml.train.microbatches import num_microbatches
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.reproducible import by_shards
from dist_ml.train.step import num_slots
from dist_ml.train.trainer import Trainer


def planned_words(config: TrainConfig, trainer: Trainer) -> dict[str, float]:
    """Words that this rank sends in a step, the mean over an epoch, along each axis of more than
    one rank whose words are known beforehand.
    """
    mesh, pipeline = trainer.mesh, trainer.pipeline
    planned: dict[str, float] = {}
    if mesh.sizes["data"] > 1 and sums_all_gradients(config):
        planned["data"] = data_words(config, trainer.model, num_slots(trainer.objective), mesh)
    cut = num_microbatches(by_shards(config, mesh.sizes), mesh.sizes)
    sampler, data = trainer.sampler, mesh.comm("data")
    batches = Counter(sampler.batch_size_at(index) for index in range(sampler.steps_per_epoch))
    index_of = {sampler.batch_size_at(index): index for index in range(sampler.steps_per_epoch)}
    for batch_size, times in batches.items():
        cuts = sampler.cuts(index_of[batch_size], data.rank, data.size, cut)
        sizes = [part.size for part in cuts]
        weight = times / sampler.steps_per_epoch
        found = {
            "pipeline": pipeline_words(pipeline, sizes),
            "operator": operator_words(config, trainer, sizes),
        }
        for axis, words in found.items():
            if mesh.sizes[axis] > 1:
                planned[axis] = planned.get(axis, 0.0) + weight * words
    return planned


def data_words(config: TrainConfig, model: BlockModel, slots: int, mesh: Mesh) -> int:
    """Of one step with every gradient summed over the data axis."""
    own = [parameter.numel() for parameter in model.parameters() if not parameter.is_meta]
    comm = mesh.comm("data")
    return gradient_words(config, sum(own) + slots, comm.size, comm.rank)


def sums_all_gradients(config: TrainConfig) -> bool:
    """Over the data axis, every step: then the words are known beforehand."""
    dense = config.data_parallel.name in ("dense", "zero1", "zero2")
    return dense and config.sparse.allreduce == "none"


def gradient_words(config: TrainConfig, n: int, size: int, rank: int) -> int:
    """Of a sum of n numbers over so many replicas."""
    if size == 1:
        return 0
    if config.reproduce.shards is not None:
        return tree_exchange.words(n, config.reproduce.shards, size, rank)
    return allreduce_words(n, block(n, size, rank).size, size).sent


def pipeline_words(pipeline: Pipeline | None, sizes: Sequence[int]) -> int:
    """Of one step of micro-batches of so many samples."""
    if pipeline is None:
        return 0
    schedule, stages, shapes, shared, comm = pipeline[:5]
    return stage_words(schedule, comm.rank, stages, shapes, shared, sizes)


def stage_words(
    schedule: Schedule,
    rank: int,
    stages: Sequence[Stage],
    shapes: Mapping[str, Shape],
    shared: Sequence[Sequence[Place]],
    sizes: Sequence[int],
) -> int:
    """What leaves a rank of the pipeline along the edges of its stages, both ways, and for the
    gradients of parameters that it shares.
    """
    words = 0
    for other, actions in enumerate(schedule.actions):
        for action in actions if other != rank else ():
            pipe = schedule.pipe(action.microbatch)
            for edge, backward, m in used_by(action, stages):
                if pipe[edge.destination if backward else edge.source] == rank:
                    words += prod(shapes[edge.value].sizes) * sizes[m % len(sizes)]
    for places in shared:
        users = sorted({user for place in places for user in schedule.holders(place.stage)})
        if rank in users:
            n = places[0].parameter.numel()
            own = block(n, len(users), users.index(rank)).size
            words += allreduce_words(n, own, len(users)).sent
    return words


def operator_words(config: TrainConfig, trainer: Trainer, sizes: Sequence[int]) -> int:
    """Of one step of micro-batches of so many samples, through all layers or this rank's stages."""
    pipeline, objective = trainer.pipeline, trainer.objective
    if pipeline is None:
        return passes_words(trainer.model.blocks(), objective, sizes)
    words = 0
    for stage in pipeline.own:
        own = [
            sizes[m % len(sizes)]
            for number, kind, m in pipeline.schedule.actions[pipeline.comm.rank]
            if (number, kind) == (stage.number, "F")
        ]
        ends = objective if stage.is_last else None
        words += passes_words(stage.blocks, ends, own, config.pipeline.recompute)
    return words


def passes_words(
    blocks: Sequence[Block],
    objective: Objective | None,
    sizes: Sequence[int],
    recompute: bool = False,
) -> int:
    """Of passes of so many samples each through `blocks`, and to the `objective` where the model's
    last one is among them; `recompute`: forward passes run twice.
    """
    layers = [layer for block_ in blocks for layer in _shared_layers(block_.module)]
    moved = [layer.words(size) for layer in layers for size in sizes if size]
    words = sum((1 + recompute) * one.forward + one.backward for one in moved)
    if isinstance(objective, ParallelObjective):
        words += (1 + recompute) * sum(objective.words(size) for size in sizes if size)
    return words


def _shared_layers(module: nn.Module) -> Iterator[SharedLayer]:
    """Those in a module; what one of them holds (a tied weight's other user) it tells itself."""
    if isinstance(module, SharedLayer):
        yield module
        return
    for child in module.children():
        yield from _shared_layers(child)
