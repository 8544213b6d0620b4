"""The ranks' part of `dist-ml bench sparse_scaling`: each variant on the same contributions."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.sparse import SPARSE_ALLREDUCES, Entries, Settings
from dist_ml.comm.sparse.family import make
from dist_ml.comm.sparse.probe import probe
from dist_ml.measure.compare import seconds_per_call

# The naive reference sums in fp64 and is no candidate; "dense" is planned as 2n(P-1)/P words, and
# measured on our ring.
VARIANTS = tuple(name for name in SPARSE_ALLREDUCES if name != "dense")
OVERLAP = 0.5  # share of a rank's support that all ranks have in common


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Words and messages of the rank with most, elements of the result, and seconds a call, by
    variant; and the cost model.
    """
    n, k, steps = (
        arguments["num_elements"],
        round(arguments["density"] * arguments["num_elements"]),
        arguments["steps"],
    )
    model = probe(comm)
    inputs = [contribution(n, k, comm.rank, step) for step in range(steps)]
    variants = {name: _one(comm, name, inputs, n, k) for name in VARIANTS}
    variants["dense"] = _dense(comm, n, max(1, steps // 2))
    return {"model": model.to_mapping(), "variants": variants}


def contribution(n: int, k: int, rank: int, step: int) -> Entries:
    """About k entries: half on a support that all ranks share in this step; magnitudes beyond a
    threshold, exponential.
    """
    shared, own = np.random.default_rng([step]), np.random.default_rng([step, rank + 1])
    common = shared.choice(n, round(OVERLAP * k), replace=False, shuffle=False)
    mine = own.choice(n, k - common.size, replace=False, shuffle=False)
    indices = np.unique(np.concatenate([common, mine])).astype(np.int32)
    values = (1 + own.exponential(0.25, indices.size)) * own.choice([-1.0, 1.0], indices.size)
    return Entries(indices, values.astype(np.float32))


def _one(comm: Communicator, name: str, inputs: list[Entries], n: int, k: int) -> dict[str, float]:
    variant = make(name, comm, n, Settings(qsgd_bits=4 if name == "dense_split_allgather" else 0))
    density = 0.0

    def step(own: Entries) -> None:
        nonlocal density
        density = variant.reduce(own, k).nonzeros() / n

    warm_up, timed = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    for own in warm_up:
        step(own)
    return {**_figures(comm, [partial(step, own) for own in timed]), "density": density}


def _dense(comm: Communicator, n: int, steps: int) -> dict[str, float]:
    """Our ring, after as many steps to warm up as the others have."""
    ring, vector = family.make("ring", comm), np.ones(n, np.float32)
    for _ in range(steps):
        ring(vector)
    return {**_figures(comm, [partial(ring, vector)] * steps), "density": 1.0}


def _figures(comm: Communicator, calls: Sequence[Callable[[], object]]) -> dict[str, float]:
    """32-bit words and messages a call, of the rank that sends most, and the median time of the
    slowest rank. What timing itself reduces is not counted.
    """
    moved, seconds = np.zeros(2), []

    def counting(call: Callable[[], object]) -> None:
        before = comm.traffic.total()
        call()
        after = comm.traffic.total()
        sent = after.bytes_sent - before.bytes_sent
        moved[:] += [sent, after.messages - before.messages]

    for call in calls:
        seconds.append(seconds_per_call(comm, partial(counting, call)))
    moved /= len(calls)
    comm.allreduce(moved, "max")
    return {
        "words": float(moved[0]) / 4,
        "messages": float(moved[1]),
        "ms": 1e3 * statistics.median(seconds),
    }
