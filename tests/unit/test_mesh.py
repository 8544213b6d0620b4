"""Mesh arithmetic and the lone communicator, without MPI."""

import pytest
import torch
from thread_world import run_ranks

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
    request, source = comm.ireceive_any(received.zero_(), tag=3)
    comm.send(x, 0, tag=3)
    request.wait()
    assert (source(), received[1].item()) == (0, 1.0)
    assert comm.traffic.total().words_sent == 0
    assert repr(Mesh(comm, {"data": None})) == "data=1 x pipeline=1 x operator=1"


SIZES = {"data": 2, "pipeline": 3, "operator": 2}


def test_sub_meshes_hold_the_ranks_that_differ_along_their_axes_in_the_meshs_order() -> None:
    def body(world: Communicator) -> dict[str, list[tuple[int, ...]]]:
        mesh = Mesh(world, SIZES)
        place = tuple(mesh.coordinates.values())
        wanted = {
            "data": mesh.comm("data"),
            "pipeline": mesh.comm("pipeline"),
            "operator": mesh.comm("operator"),
            "pipeline x operator": mesh.comm("operator", "pipeline"),
            "data x operator": mesh.comm("data", "operator"),
            "data x pipeline x operator": mesh.comm(*SIZES),
            "self": mesh.comm(),
        }
        assert {comm.axis for comm in wanted.values()} == set(wanted)
        assert mesh.comm("pipeline", "operator") is wanted["pipeline x operator"]
        found = {name: comm.allgather_objects(place) for name, comm in wanted.items()}
        assert all(places[wanted[name].rank] == place for name, places in found.items())
        mesh.free()
        return found

    for rank, found in enumerate(run_ranks(12, body)):
        data, rest = divmod(rank, 6)
        pipeline, operator = divmod(rest, 2)
        assert found["self"] == [(data, pipeline, operator)]
        assert found["data"] == [(d, pipeline, operator) for d in range(2)]
        assert found["pipeline"] == [(data, p, operator) for p in range(3)]
        assert found["operator"] == [(data, pipeline, o) for o in range(2)]
        assert found["pipeline x operator"] == [(data, *divmod(i, 2)) for i in range(6)]
        assert found["data x operator"] == [(d, pipeline, o) for d in range(2) for o in range(2)]
        assert len(found["data x pipeline x operator"]) == 12


def test_an_axis_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(MeshError, match="no axis expert; its axes are data, pipeline, operator"):
        Mesh(Communicator(Loopback()), {"data": 1}).comm("expert")


def test_operator_ranks_share_a_node_whatever_order_the_launcher_placed_them_in() -> None:
    nodes = [0, 1, 0, 1, 0, 1]

    def body(world: Communicator) -> tuple[int, int, list[int]]:
        mesh = Mesh(world, {"data": 2, "operator": 3})
        on = mesh.comm("operator").allgather_objects(nodes[world.rank])
        return mesh.world.rank, mesh.coordinates["operator"], on

    found = run_ranks(6, body, nodes)
    assert [world_rank for world_rank, _, _ in found] == [0, 3, 1, 4, 2, 5]
    assert all(len(set(on)) == 1 for _, _, on in found)
    assert [place for _, place, _ in found] == [0, 0, 1, 1, 2, 2]


def test_sums_along_one_axis_leave_the_others_alone() -> None:
    def body(world: Communicator) -> list[float]:
        mesh = Mesh(world, SIZES)
        x = torch.tensor([float(10 * mesh.coordinates["data"] + mesh.coordinates["pipeline"])])
        mesh.comm("data").allreduce(x)
        y = x.clone()
        mesh.comm("pipeline", "operator").allreduce(y)
        return [float(x), float(y)]

    for rank, (over_data, over_both) in enumerate(run_ranks(12, body)):
        pipeline = rank % 6 // 2
        assert over_data == 10 + 2 * pipeline
        assert over_both == 2 * sum(10 + 2 * p for p in range(3))
