"""`dist-ml bench overlap`: how much of the exchange the backward pass hides, and our step against
DDP over gloo.

All candidates train one model in the same processes, in turn: with no exchange, with one after the
backward pass, during it by a thread, during it by polling, with a 16-bit wire, and torch's DDP on
the same model's code. On one node also with MPI's own allreduce, which sends messages as gloo does,
and DDP without exchange (`no_sync`), so that the exchange's part of each step shows.

hidden = 1 - (overlapped step - step without exchange) / (step after - step without exchange)
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Result
from dist_ml.bench.overlap_checks import exchange_parts, hidden, network_checks, node_checks
from dist_ml.bench.overlap_part import (
    AFTER,
    BF16,
    DDP,
    DDP_ALONE,
    NATIVE,
    NOTHING,
    POLL,
    THREAD,
    measure,
)
from dist_ml.bench.worlds import Worlds
from dist_ml.launch.emulated_network import EmulatedNetwork


@dataclass(frozen=True)
class OverlapBench:
    """What to train, where."""

    network: str  # node, or the rate of the emulated network's links as tc writes it: 1gbit
    mpi: str
    ranks: int  # in the emulated network: hosts, one rank each
    widths: tuple[int, ...]  # of the MLP that is compared with DDP, features and classes included
    batch: int  # samples a rank
    # network: of the MLP whose exchange is to be hidden; none: left out
    hidden_widths: tuple[int, ...]
    # samples a rank of that one: so many that its exchange takes 0.6 to 0.8 of its backward pass
    hidden_batch: int
    rounds: int  # of alternation
    steps: int  # a round


def run(config: OverlapBench, worlds: Worlds) -> Result:
    if config.network == "node":
        candidates: tuple[str, ...] = (NOTHING, AFTER, THREAD, NATIVE, DDP, DDP_ALONE)
        found = _measured(
            config, worlds, config.widths, config.batch, "shared_memory", candidates, None
        )
        records = [*found["records"], *exchange_parts(found["seconds"])]
        return Result("overlap", records, node_checks(found["seconds"]))
    with worlds.network(config.ranks, config.network) as network:
        candidates = (NOTHING, AFTER, THREAD, POLL, BF16, DDP)
        found = _measured(config, worlds, config.widths, config.batch, "ring", candidates, network)
        records, checks = found["records"], network_checks(found["seconds"], config.network)
        if config.hidden_widths:
            candidates = (NOTHING, AFTER, THREAD, POLL)
            widths, batch = config.hidden_widths, config.hidden_batch
            found = _measured(config, worlds, widths, batch, "ring", candidates, network)
            shares, more = hidden(found)
            records, checks = [*records, *found["records"], *shares], [*checks, *more]
    return Result("overlap", records, checks)


def _measured(
    config: OverlapBench,
    worlds: Worlds,
    widths: Sequence[int],
    batch: int,
    algorithm: str,
    candidates: Sequence[str],
    network: EmulatedNetwork | None,
) -> dict[str, Any]:
    arguments = {
        "widths": widths,
        "batch": batch,
        "algorithm": algorithm,
        "candidates": candidates,
        "rounds": config.rounds,
        "steps": config.steps,
    }
    environment = {
        "OMP_NUM_THREADS": "1",
        **({"GLOO_SOCKET_IFNAME": "eth0"} if network is not None else {}),
    }
    found = worlds.measure(
        "overlap",
        arguments,
        ranks=config.ranks,
        mpi=config.mpi,
        network=network,
        environment=environment,
    )
    found["records"] = [
        {
            "network": config.network,
            "widths": "-".join(map(str, widths)),
            "batch": batch,
            "candidate": name,
            "step_ms": 1e3 * statistics.median(values),
            "processor_ms": 1e3 * statistics.median(found["processor"][name]),
            "backward_ms": 1e3 * found["backward"],
        }
        for name, values in found["seconds"].items()
    ]
    return dict(found)


BENCH = Bench(
    "the exchange during the backward pass, and our step against DDP",
    OverlapBench,
    run,
    {"overlap": measure},
    ranks=2,
)
