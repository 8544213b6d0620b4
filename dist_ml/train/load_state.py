"""Going on from a checkpoint: what must be the same, and each rank's reading of what it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dist_ml.checkpoint.boxes import size_of
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.reader import Checkpoint
from dist_ml.comm.agreement import raise_on_all_ranks
from dist_ml.data_parallel.flat_state import FlatState, Rows, state_of
from dist_ml.errors import DataError
from dist_ml.partition import Range
from dist_ml.train.state import pieces_of, untrained_pieces
from dist_ml.train.trainer import Trainer


def load(
    trainer: Trainer, checkpoint: Checkpoint, numbers: Sequence[dict[str, Any]], own: bool
) -> None:
    """Go on from a checkpoint whose `saved_numbers` were these; `own`: of a mesh and settings like
    this one's, so that each rank finds its own. Each rank reads what it needs. Collective.

    `DataError` on all ranks, before anything is changed, for the state of another model, dtype,
    optimizer or exchange: nothing is ever left at zero. The weights before the last update, which
    an asynchronous schedule keeps, are left out by others; where there are none, both are the last.
    """
    world = trainer.mesh.world
    state, here = numbers[world.rank if own else 0], trainer.state_dict()
    with raise_on_all_ranks(world):
        _require_same_parts(checkpoint, state, here)
    trainer.load_state_dict(state, own)
    _fill(trainer, checkpoint, trainer.tensors())


def load_weights(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Begin with the weights of a checkpoint that holds nothing else. Collective; `DataError` on
    all ranks where they are another model's.
    """
    _fill(trainer, checkpoint, state_of("model/{}", list(trainer.parameters.values())))


def _fill(trainer: Trainer, checkpoint: Checkpoint, states: Sequence[FlatState]) -> None:
    """Read all of `states`, which are all that the checkpoint holds."""
    world = trainer.mesh.world
    held = pieces_of(states, trainer.parameters, trainer.parameters) + untrained_pieces(trainer)
    with raise_on_all_ranks(world):
        for piece, rows in held:
            _require_fits(checkpoint, piece, rows)
    _require_all_used(trainer, checkpoint, {piece.name for piece, _ in held})
    with raise_on_all_ranks(world):
        for piece, rows in held:
            _read_into(checkpoint, piece, rows)


def _require_same_parts(
    checkpoint: Checkpoint, saved: Mapping[str, Any], mine: Mapping[str, Any]
) -> None:
    try:
        there = _parts(saved)
    except (LookupError, TypeError) as error:
        raise DataError(
            f"{checkpoint.path} holds no state of a run that can be read "
            f"({type(error).__name__}: {error}); was it saved by another version?"
        ) from error
    for part, here in _parts(mine).items():
        if there[part] != here:
            raise DataError(
                f"{checkpoint.path} was saved with other settings of data_parallel, sparse or "
                f"optimizer: the state of its {part} is {there[part] or 'none'}, but "
                f"{here or 'none'} here; use its settings"
            )


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of a rank's `state_dict`."""
    updater = state["updater"]
    return {
        "exchange": list(state["reducer"]),
        "local steps": list(updater["averager"]),
        "pipeline": type(updater["versions"]).__name__,  # another schedule's may be gone on with
        "optimizer": updater["optimizer"]["kind"],
    }


def _require_fits(checkpoint: Checkpoint, piece: Piece, rows: Rows | None) -> None:
    shape, dtype = checkpoint.shape(piece.name), checkpoint.dtype(piece.name)
    first = 0 if rows is None else 1  # replicas may be more or fewer
    if len(shape) != len(piece.shape) or shape[first:] != piece.shape[first:]:
        raise DataError(
            f"{checkpoint.path} was saved by another model: its {piece.name} is {list(shape)}, but "
            f"{list(piece.shape)} here; use that model's configuration"
        )
    if dtype != piece.values.dtype:
        raise DataError(
            f"{checkpoint.path} holds {piece.name} as {dtype}, but this run computes in "
            f"{piece.values.dtype}; use the precision that it was saved with"
        )


def _require_all_used(trainer: Trainer, checkpoint: Checkpoint, used: set[str]) -> None:
    """`DataError` on all ranks for a tensor of the checkpoint that no rank has a place for."""
    marks = np.array([name in used for name in checkpoint.names], np.int32)
    trainer.mesh.world.allreduce(marks, "max")
    unused = [
        name
        for name, mark in zip(checkpoint.names, marks, strict=True)
        if not mark and not name.startswith("older/")
    ]
    if unused:
        error = DataError(
            f"{checkpoint.path} was saved by another model or with other settings: it holds "
            f"{unused[0]}, which this run has no place for; use that run's configuration"
        )
        error.agreed = True
        raise error


def _read_into(checkpoint: Checkpoint, piece: Piece, rows: Rows | None) -> None:
    """Fill a piece; of another number of replicas than here, as `Rows` has it."""
    count = checkpoint.shape(piece.name)[0] if rows is not None else 0
    if rows is None or count == rows.count:
        checkpoint.read_into(piece.name, piece.region, piece.values)
        return
    total = torch.zeros(size_of(piece.region), dtype=torch.float64)
    taken = range(rows.index, count, rows.count) if rows.rule == "sum" else range(count)
    for row in taken:
        total += checkpoint.read(piece.name, (Range(row, row + 1), *piece.region[1:]))
    piece.values.copy_(total / count if rows.rule == "mean" else total)
