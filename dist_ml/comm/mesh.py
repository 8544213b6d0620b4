"""The mesh: ranks arranged along named axes, one Communicator an axis."""

import math
from collections.abc import Iterable, Mapping, Sequence

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import MeshError

AXES = ("data", "pipeline", "operator")


class Mesh:
    """Ranks in row-major order over `data`, `pipeline`, `operator`: operator innermost, so that its
    ranks share a node.

    Ranks are ordered by node before they are laid out, whatever order the launcher placed them in.
    Collective.

    `world` is all ranks in that order: whatever is done once a run, or must agree, uses it.
    `sizes` and `coordinates` are this rank's, by axis.
    """

    def __init__(self, world: Communicator, sizes: Mapping[str, int | None]) -> None:
        self.sizes = resolve_sizes(sizes, world.size)
        position = node_order(world.allgather_objects(_node_key(world))).index(world.rank)
        ordered = world.split(0, position)
        assert ordered is not None
        self.world = ordered
        place = coordinates_of(position, tuple(self.sizes.values()))
        self.coordinates = dict(zip(self.sizes, place, strict=True))
        self._comms: dict[tuple[str, ...], Communicator] = {}

    def __repr__(self) -> str:
        return " x ".join(f"{name}={size}" for name, size in self.sizes.items())

    def comm(self, *axes: str) -> Communicator:
        """The ranks that differ from this one along `axes` alone, in the mesh's order.

        Made at the first call, which is collective over the mesh, and kept. `MeshError` lists the
        axes there are.
        """
        for name in axes:
            if name not in self.sizes:
                raise MeshError(f"the mesh has no axis {name}; its axes are {', '.join(AXES)}")
        wanted = tuple(name for name in self.sizes if name in axes)
        if wanted not in self._comms:
            self._comms[wanted] = self._make(wanted)
        return self._comms[wanted]

    def free(self) -> None:
        """Give all communicators back. Collective."""
        for comm in self._comms.values():
            comm.free()
        self._comms.clear()
        self.world.free()

    def _make(self, axes: tuple[str, ...]) -> Communicator:
        color = self._position(name for name in self.sizes if name not in axes)
        comm = self.world.split(color, self._position(axes), axis=" x ".join(axes) or "self")
        assert comm is not None
        return comm

    def _position(self, axes: Iterable[str]) -> int:
        """Row-major, among the coordinates of `axes` alone."""
        position = 0
        for name in axes:
            position = position * self.sizes[name] + self.coordinates[name]
        return position


def resolve_sizes(sizes: Mapping[str, int | None], num_ranks: int) -> dict[str, int]:
    """The size of every axis; at most one may be None and takes the ranks that the others leave.

    `MeshError`, with the product printed, unless the sizes multiply to the number of ranks.
    """
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise MeshError(f"mesh.{unknown[0]} is not an axis; the axes are {', '.join(AXES)}")
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise MeshError(
                f"mesh.{name}={size} must be at least 1, or null to take the ranks that are left"
            )
    given = {name: sizes.get(name, 1) for name in AXES}
    open_axes = [name for name, size in given.items() if size is None]
    if len(open_axes) > 1:
        raise MeshError(
            f"mesh.{open_axes[0]} and mesh.{open_axes[1]} are both null; only one axis can take "
            "the ranks that are left"
        )
    product = math.prod(size for size in given.values() if size is not None)
    rest = num_ranks // product if open_axes and num_ranks % product == 0 else 1
    resolved = {name: rest if size is None else size for name, size in given.items()}
    if math.prod(resolved.values()) != num_ranks:
        raise MeshError(_product_message(resolved, open_axes, num_ranks))
    return resolved


def node_order(nodes: Sequence[str]) -> list[int]:
    """Ranks grouped by node, nodes in the order of their first rank, ranks of a node in their own
    order.
    """
    first = {node: rank for rank, node in reversed(list(enumerate(nodes)))}
    return sorted(range(len(nodes)), key=lambda rank: (first[nodes[rank]], rank))


def coordinates_of(position: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Row-major coordinates of a position: the last axis varies fastest."""
    coordinates = []
    for size in reversed(sizes):
        position, coordinate = divmod(position, size)
        coordinates.append(coordinate)
    return tuple(reversed(coordinates))


def _node_key(world: Communicator) -> str:
    """The first world rank of this node: a name for it that doesn't depend on host names."""
    node = world.split_by_node()
    key = str(node.broadcast_object(world.rank))
    node.free()
    return key


def _product_message(sizes: Mapping[str, int], open_axes: Sequence[str], num_ranks: int) -> str:
    shown = [(name, size) for name, size in sizes.items() if name not in open_axes]
    product = " x ".join(f"{name}={size}" for name, size in shown)
    total = math.prod(size for _, size in shown)
    if open_axes:
        return (
            f"mesh {product} = {total} does not divide the {num_ranks} ranks started; change the "
            "mesh or start a multiple"
        )
    return (
        f"mesh {product} = {total} ranks, but {num_ranks} were started; change the mesh or start "
        f"{total}"
    )
