"""Sharded matrices on disk: one file a rank, which says what it holds."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.matrix import ShardedMatrix


def save(matrix: ShardedMatrix, folder: Path) -> None:
    """Write this rank's shard to `folder`/shard-<rank>.safetensors. Collective; returns when all
    are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"layout": _spell(matrix.layout), "rank": str(matrix.comm.rank)}
    save_file(
        {"storage": matrix.storage.detach().contiguous()}, _file(folder, matrix.comm.rank), metadata
    )
    matrix.comm.barrier()


def load(
    folder: Path, layout: Layout, comm: Communicator, dtype: torch.dtype | None = None
) -> ShardedMatrix:
    """Read this rank's shard. `DataError` when it is missing, damaged, or holds another layout,
    rank or dtype.
    """
    file = _file(folder, comm.rank)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata, storage = opened.metadata() or {}, opened.get_tensor("storage")
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{file} can't be read ({error}); save the matrix again on {comm.size} ranks"
        ) from None
    if metadata.get("layout") != _spell(layout):
        raise DataError(
            f"{file} holds another layout, {metadata.get('layout')}, than asked for, "
            f"{_spell(layout)}; load it as it was saved "
            "and call to(layout)"
        )
    if metadata.get("rank") != str(comm.rank):
        raise DataError(
            f"{file} holds rank {metadata.get('rank')}'s shard, not rank {comm.rank}'s; restore "
            "the file's name"
        )
    if dtype is not None and storage.dtype != dtype:
        raise DataError(
            f"{file} holds {storage.dtype}, not {dtype}; load it as {storage.dtype} and convert"
        )
    return ShardedMatrix(layout, comm, storage)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"shard-{rank:05d}.safetensors"


def _spell(layout: Layout) -> str:
    return json.dumps(asdict(layout), sort_keys=True)
