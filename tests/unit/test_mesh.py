"""Mesh arithmetic and the lone communicator, without MPI."""

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.comm.mesh import Mesh, coordinates_of, node_order, resolve_sizes
from dist_ml.errors import MeshError


def test_one_open_axis_takes_the_ranks_that_are_left() -> None:
    assert resolve_sizes({"data": None, "pipeline": 2, "operator": 1}, 8) == {
        "data": 4,
        "pipeline": 2,
        "operator": 1,
    }
    assert resolve_sizes({"data": 3}, 3) == {"data": 3, "pipeline": 1, "operator": 1}


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        (
            {"data": 2, "pipeline": 3, "operator": 1},
            8,
            "mesh data=2 x pipeline=3 x operator=1 = 6 ranks, but 8 were started",
        ),
        (
            {"data": None, "pipeline": 3},
            8,
            "pipeline=3 x operator=1 = 3 does not divide the 8 ranks",
        ),
        ({"data": None, "pipeline": None}, 8, "both null"),
        ({"data": 0}, 1, "mesh.data=0 must be at least 1"),
        ({"expert": 2}, 2, "mesh.expert is not an axis; the axes are data, pipeline, operator"),
    ],
)
def test_impossible_meshes_are_refused_with_the_product(
    sizes: dict[str, int | None], ranks: int, message: str
) -> None:
    with pytest.raises(MeshError, match=message.replace("+", "\\+")):
        resolve_sizes(sizes, ranks)


def test_ranks_are_laid_out_node_by_node() -> None:
    assert node_order(["a", "b", "a", "b"]) == [0, 2, 1, 3]
    assert [coordinates_of(position, (2, 1, 3)) for position in range(6)] == [
        (data, 0, operator) for data in range(2) for operator in range(3)
    ]


def test_a_lone_rank_needs_no_mpi() -> None:
    comm = Communicator(Loopback())
    x = torch.arange(4.0)
    comm.allreduce(x, "mean")
    comm.isend(x, 0, tag=3)
    received = torch.empty(4)
    comm.ireceive(received, 0, tag=3).wait()
    assert torch.equal(received, torch.arange(4.0))
    assert comm.traffic.total().words_sent == 0
    assert repr(Mesh(comm, {"data": None})) == "data=1 x pipeline=1 x operator=1"
