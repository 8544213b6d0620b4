"""The whole model's weights, from the parts that ranks hold, and the other way round."""

from collections.abc import Mapping

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.errors import DataError
from dist_ml.models import BlockModel
from dist_ml.placement import Region, share_of

_TAG = 0  # nothing else is under way on these axes meanwhile

State = dict[str, torch.Tensor]


def gather_state(model: BlockModel, mesh: Mesh) -> State | None:
    """The state dict with plain names and whole tensors, on rank 0 of the mesh; None elsewhere.
    Collective.

    Each region is sent once, by the first rank of the first replica that holds it. Memory on rank
    0: the whole model's; on the first rank of each stage: the stage's.
    """
    operator, pipeline = mesh.comm("operator"), mesh.comm("pipeline")  # made by all ranks together
    if mesh.coordinates["data"]:
        return None
    stage = _whole_tensors(model, operator)
    return None if stage is None else _all_stages(model, stage, pipeline)


def load_state(model: BlockModel, state: Mapping[str, torch.Tensor]) -> None:
    """Fill the parameters that this rank has with its parts of a whole model's `state`. No
    communication. `DataError` for another model's.
    """
    names = list(model.state_dict())
    different = set(names) ^ set(state)
    if different:
        raise DataError(
            f"the state dict is of another model: {sorted(different)[0]} is in only one of the two"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            share, whole = share_of(parameter), state[name]
            shape = tuple(parameter.shape) if share is None else share.shape
            if tuple(whole.shape) != shape:
                raise DataError(
                    f"the state dict is of another model: {name} is {list(whole.shape)} there, "
                    f"but {list(shape)} here"
                )
            if not parameter.is_meta:
                parameter.copy_(whole if share is None else whole[_slices(share.region)])


def _whole_tensors(model: BlockModel, comm: Communicator) -> State | None:
    """This stage's tensors, whole, on the first rank of the operator axis; None elsewhere."""
    held = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    if comm.size == 1:
        return held
    shares = {
        name: share_of(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    regions = {name: share.region for name in held if (share := shares.get(name)) is not None}
    of_ranks = comm.allgather_objects(regions)
    for name, own in regions.items():
        share = shares[name]
        assert share is not None
        whole = held[name].new_empty(share.shape) if comm.rank == 0 else None
        done: set[Region] = set()
        for rank, theirs in enumerate(of_ranks):
            region = theirs[name]
            if region in done:
                continue
            done.add(region)
            if whole is None:
                if comm.rank == rank:
                    comm.send(held[name].contiguous(), 0, _TAG)
                continue
            part = held[name]
            if rank != 0:
                part = whole.new_empty([side.size for side in region])
                comm.receive(part, rank, _TAG)
            whole[_slices(region)] = part
        assert own in done
        if whole is not None:
            held[name] = whole
    return held if comm.rank == 0 else None


def _all_stages(model: BlockModel, held: State, comm: Communicator) -> State | None:
    """The tensors of all stages, in the model's order, on the first rank of the pipeline."""
    if comm.size == 1:
        return held
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
    owners: dict[str, tuple[int, tuple[int, ...]]] = {}
    for rank, theirs in enumerate(comm.allgather_objects(shapes)):
        for name, shape in theirs.items():
            owners.setdefault(name, (rank, shape))
    state: State = {}
    for name, tensor in model.state_dict().items():
        owner, shape = owners[name]
        if comm.rank == 0:
            state[name] = held[name] if owner == 0 else tensor.new_empty(shape, device="cpu")
            if owner != 0:
                comm.receive(state[name], owner, _TAG)
        elif comm.rank == owner:
            comm.send(held[name].contiguous(), 0, _TAG)
    return state if comm.rank == 0 else None


def _slices(region: Region) -> tuple[slice, ...]:
    return tuple(side.slice for side in region)
