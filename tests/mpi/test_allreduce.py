"""Every member of the allreduce family against the naive reference, and its ledger against its
formula.
"""

import numpy as np
import pytest
import torch

from dist_ml.comm.allreduce import family
from dist_ml.comm.allreduce.native import naive
from dist_ml.comm.allreduce.wire import WireName
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.traffic import Tally
from dist_ml.errors import CommunicationError, ConfigError

SIZES = (0, 1, 2, 3, 5, 17, 1000, 70_001)
NAMES = tuple(name for name in family.ALLREDUCES)
pytestmark = pytest.mark.mpi


def values(world: Communicator, n: int, dtype: type, integers: bool = True) -> np.ndarray:
    random = np.random.default_rng(world.rank)
    return (random.integers(-8, 9, n) if integers else random.normal(size=n)).astype(dtype)


def moved(tally: Tally) -> tuple[int, int, int]:
    return tally.words_sent, tally.words_received, tally.messages


@pytest.mark.parametrize("name", NAMES)
def test_sums_equal_the_naive_reference_and_words_equal_the_formula(
    world: Communicator, name: str
) -> None:
    reduce = family.make(name, world)
    shared = reduce.allocate(max(SIZES) + 3, torch.float32)
    for n in SIZES:
        for op in ("sum", "mean"):
            expected = values(world, n, np.float32)
            places = [expected.copy(), shared[3 : 3 + n]]
            places[1].copy_(torch.from_numpy(expected))
            naive(world, expected, op)
            for place in places:
                before = world.traffic.snapshot()
                reduce(place, op)
                tallies = world.traffic.since(before)
                np.testing.assert_array_equal(
                    np.asarray(place), expected, err_msg=f"{name} n={n} {op}"
                )
                words = reduce.words(n)
                total = [
                    sum(row)
                    for row in zip(
                        (0, 0, 0), *(moved(tally) for tally in tallies.values()), strict=True
                    )
                ]
                assert total == list(words), f"{name} n={n}: ledger {total}, formula {words}"
    reduce.free()


@pytest.mark.parametrize("name", NAMES)
def test_several_under_way_and_deterministic(world: Communicator, name: str) -> None:
    reduce = family.make(name, world)
    buffer = reduce.allocate(5000, torch.float64)
    results = []
    for attempt in range(2):
        buffer.copy_(torch.from_numpy(values(world, 5000, np.float64, integers=False)))
        cuts = [buffer[:1237], buffer[1237:1240], buffer[1240:1240], buffer[1240:]]
        requests = [reduce.start(cut) for cut in cuts]
        done = [False] * len(requests)
        while attempt and not all(done):
            done = [request.test() for request in requests]
        for request in requests if world.rank % 2 else reversed(requests):  # no order of all ranks
            request.wait()
        results.append(buffer.clone())
    assert torch.equal(*results)
    everywhere = world.allgather_objects(results[0].numpy().tobytes())
    assert all(bits == everywhere[0] for bits in everywhere)
    expected = values(world, 5000, np.float64, integers=False)
    naive(world, expected, "sum")
    np.testing.assert_allclose(results[0], expected, rtol=1e-13, atol=1e-13)
    reduce.free()


@pytest.mark.parametrize("wire", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["ring", "rabenseifner", "hierarchical"])
def test_a_narrow_wire_rounds_alike_on_all_ranks(world: Communicator, name: str, wire: str) -> None:
    reduce = family.make(name, world, wire)
    x = values(world, 10_001, np.float32, integers=False)
    expected = x.astype(np.float64)
    naive(world, expected, "sum")
    scale = np.abs(x).astype(np.float64)
    naive(world, scale, "sum")
    reduce(x)
    unit = 2.0**-8 if wire == "bf16" else 2.0**-11
    assert (np.abs(x - expected) <= (world.size + 1) * unit * scale + 1e-7).all()
    everywhere = world.allgather_objects(x.tobytes())
    assert all(bits == everywhere[0] for bits in everywhere)
    if world.size > 1:
        with pytest.raises(ConfigError, match="wire"):
            reduce(np.zeros(8))
    reduce.free()


def test_mistakes_are_refused_in_words(world: Communicator) -> None:
    with pytest.raises(ConfigError, match="native, ring"):
        family.make("rings", world)
    with pytest.raises(ConfigError, match="fp32, bf16, fp16"):
        family.make("ring", world, "fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="wire=bf16"):
        family.make("native", world, "bf16")
    with pytest.raises(CommunicationError, match="int64"):
        family.make("ring", world)(np.zeros(3, dtype=np.int64))
    with pytest.raises(CommunicationError, match="op=sum or mean"):
        family.make("ring", world)(np.zeros(3), "max")  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks_per_node", [1, 2, 3])
@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_hierarchical_over_several_nodes(
    world: Communicator, monkeypatch: pytest.MonkeyPatch, ranks_per_node: int, wire: WireName
) -> None:
    """Nodes that are made up of this one's ranks, the last one smaller where they don't divide;
    short shares and long ones.
    """
    monkeypatch.setattr(
        Communicator,
        "split_by_node",
        lambda self, axis=None: self.split(self.rank // ranks_per_node, axis=axis),
    )
    reduce = family.make("hierarchical", world, wire)
    sizes = (0, 1, 3, 1001, 700_001)  # the last goes around rings, in several segments
    buffer = reduce.allocate(max(sizes) + 5, torch.float32)
    for n in sizes:
        for op in ("sum", "mean"):
            mine = values(world, n, np.float32)
            expected = mine.copy()
            naive(world, expected, op)
            place = buffer[5 : 5 + n]
            place.copy_(torch.from_numpy(mine))
            before = world.traffic.snapshot()
            reduce(place, op)
            total = [
                sum(row)
                for row in zip(
                    (0, 0, 0), *map(moved, world.traffic.since(before).values()), strict=True
                )
            ]
            assert total == list(reduce.words(n)), (
                f"n={n} {op}: ledger {total}, formula {reduce.words(n)}"
            )
            tolerance = 0 if wire == "fp32" and op == "sum" else 1e-6 if wire == "fp32" else 0.2
            np.testing.assert_allclose(
                place, expected, rtol=0, atol=tolerance, err_msg=f"n={n} {op}"
            )
            everywhere = world.allgather_objects(place.numpy().tobytes())
            assert all(bits == everywhere[0] for bits in everywhere)
    reduce.free()
