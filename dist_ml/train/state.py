"""A trainer's state as boxes of named global tensors, and back: from any mesh, on any mesh.

    Trainer.tensors()     elements [a, b) of this rank's flat vector     `FlatState`
    pieces_of             boxes of whole tensors, by name                `Piece`
    Checkpoint.read       any box, from whatever boxes were written

A shard of the flat vector becomes boxes of the parameters that it cuts; a part of a layer lies
where its share does; where replicas have values of their own, a tensor has one dimension more.

    model/NAME, replicas/NAME      parameters: the same on all replicas, or of each (local steps)
    optimizer/NAME/exp_avg …       moments, with the dimension of replicas for local steps
    residual/NAME, velocity/NAME   what each replica (node) has not sent yet, and its momentum
    momentum/NAME                  of tensors that are summed densely beside sparse ones
    arrived/NAME                   the mean of parameters that were under way (DASO)
    older/NAME                     the weights before the last update (PipeDream-2BW)
    model/NAME                     buffers and frozen parameters, too (buffer/NAME beside replicas/)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from dist_ml.checkpoint.boxes import boxes_of_range, num_elements, size_of
from dist_ml.checkpoint.piece import Piece
from dist_ml.data_parallel.flat_state import FlatState, Rows
from dist_ml.data_parallel.gradients import places
from dist_ml.partition import Range
from dist_ml.placement import Region, share_of, whole, whole_shape
from dist_ml.train.trainer import Trainer

Held = list[tuple[Piece, Rows | None]]


def saved_pieces(trainer: Trainer) -> list[Piece]:
    """What this rank brings to a checkpoint, in place. Collective.

    Of parameters that several ranks of the operator axis hold alike the first one's are taken:
    others may keep other shards of the same state.
    """
    comm = trainer.mesh.comm("operator")
    regions = {name: _region(parameter) for name, parameter in trainer.parameters.items()}
    before = comm.allgather_objects(regions)[: comm.rank] if comm.size > 1 else []
    mine = {
        name: parameter
        for name, parameter in trainer.parameters.items()
        if all(others.get(name) != regions[name] for others in before)
    }
    held = pieces_of(trainer.tensors(), trainer.parameters, mine)
    return [piece for piece, _ in [*held, *untrained_pieces(trainer)]]


def untrained_pieces(trainer: Trainer) -> Held:
    """What of the model is saved and not trained."""
    kind = "model" if trainer.updater.rows is None else "buffer"
    return [
        (Piece(f"{kind}/{name}", tuple(each.shape), whole(each.shape), each.detach()), None)
        for name, each in trainer.untrained.items()
    ]


def saved_numbers(trainer: Trainer) -> list[dict[str, Any]]:
    """The rest of the state of each rank of the mesh, as JSON. Collective: an allgather of a few
    hundred bytes a rank.
    """
    own = json.loads(json.dumps(trainer.state_dict(), default=lambda value: value.item()))
    return trainer.mesh.world.allgather_objects(own)


def pieces_of(
    states: Sequence[FlatState],
    parameters: Mapping[str, torch.nn.Parameter],
    wanted: Mapping[str, torch.nn.Parameter],
) -> Held:
    """Of the states of `parameters`, those of `wanted`, in place."""
    named = zip(parameters, places(list(parameters.values())), strict=True)
    found = [(name, place) for name, place in named if name in wanted]
    return [
        (piece, state.rows)
        for state in states
        for name, place in found
        for piece in _boxes(state, name, parameters[name], place)
    ]


def _boxes(
    state: FlatState, name: str, parameter: torch.nn.Parameter, place: Range
) -> Iterator[Piece]:
    """What a state has of the parameter at `place` of the flat vector."""
    both = place.intersect(state.where)
    if not both.size:
        return
    position = both.start - state.where.start
    shape, region = whole_shape(parameter), _region(parameter)
    for box in boxes_of_range(
        tuple(parameter.shape), both.start - place.start, both.stop - place.start
    ):
        values = state.values[position : position + num_elements(box)].view(size_of(box))
        position += num_elements(box)
        inside = tuple(
            Range(outer.start + side.start, outer.start + side.stop)
            for outer, side in zip(region, box, strict=True)
        )
        kind = state.kind.format(name)
        if state.rows is None:
            yield Piece(kind, shape, inside, values)
        else:
            row = Range(state.rows.index, state.rows.index + 1)
            whole_with_rows = (state.rows.count, *shape)
            yield Piece(kind, whole_with_rows, (row, *inside), values.unsqueeze(0))


def _region(parameter: torch.nn.Parameter) -> Region:
    share = share_of(parameter)
    return whole(parameter.shape) if share is None else share.region
