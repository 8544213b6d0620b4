"""The whole model's weights, gathered from the stages to the rank that saves them."""

import torch

from dist_ml.comm.mesh import Mesh
from dist_ml.models import BlockModel
from dist_ml.train.pipeline import Pipeline

_TAG = 0  # nothing else is under way on the pipeline axis meanwhile


def gather_state(
    model: BlockModel, mesh: Mesh, pipeline: Pipeline
) -> dict[str, torch.Tensor] | None:
    """The state dict with plain names, on rank 0 of the mesh; None elsewhere. Collective.

    Each tensor is sent by the first rank of the first replica that holds it. Memory on rank 0: the
    whole model's.
    """
    if any(mesh.coordinates[axis] for axis in ("data", "operator")):
        return None
    comm = pipeline.comm
    held = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    owners: dict[str, int] = {}
    for rank, names in enumerate(comm.allgather_objects(list(held))):
        for name in names:
            owners.setdefault(name, rank)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner = owners[name]
        if comm.rank == 0:
            state[name] = held[name] if owner == 0 else torch.empty_like(tensor, device="cpu")
            if owner != 0:
                comm.receive(state[name], owner, _TAG)
        elif comm.rank == owner:
            comm.send(tensor.contiguous(), 0, _TAG)
    return state if comm.rank == 0 else None
