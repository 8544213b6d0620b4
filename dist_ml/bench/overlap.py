"""`dist-ml bench overlap`: how much of the exchange the backward pass hides, and our step against
DDP over gloo.

All candidates train one model in the same processes, in turn: with no exchange, with one after the
backward pass, during it by a thread, during it by polling, with a 16-bit wire, and torch's DDP.

hidden = 1 - (overlapped step - step without exchange) / (step after - step without exchange)
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.overlap_part import AFTER, BF16, DDP, NOTHING, POLL, THREAD, measure
from dist_ml.bench.worlds import Worlds
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.measure.compare import difference, ratio

Seconds: TypeAlias = Mapping[str, Sequence[float]]


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
        candidates: tuple[str, ...] = (NOTHING, AFTER, THREAD, DDP)
        found = _measured(
            config, worlds, config.widths, config.batch, "shared_memory", candidates, None
        )
        return Result("overlap", found["records"], node_checks(found["seconds"]))
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


def node_checks(seconds: Seconds) -> list[Check]:
    """Of one node, whose memory is the network."""
    return [
        Check(
            "step over DDP with gloo, one node",
            ratio(seconds[AFTER], seconds[DDP]).median,
            0.6,
            "lower",
        ),
        Check(
            "step over no exchange, one node",
            ratio(seconds[AFTER], seconds[NOTHING]).median,
            1.15,
            "lower",
        ),
    ]


def network_checks(seconds: Seconds, network: str) -> list[Check]:
    """Against DDP over the same links, with as many bits on the wire and with half of them."""
    full, half = ratio(seconds[THREAD], seconds[DDP]), ratio(seconds[BF16], seconds[DDP])
    return [
        Check(f"step over DDP with gloo, {network}", full.median, 0.8, "lower"),
        Check(f"step over DDP with gloo, {network}, bf16 wire", half.median, 0.8, "lower"),
    ]


def hidden(found: Mapping[str, Any]) -> tuple[list[Record], list[Check]]:
    """The share of the exchange that each way to overlap hides, and the check of the better one.
    Differences are of the same round, which saw the machine in the same state.

    Where the exchange takes no time there is nothing to hide, and the check fails.
    """
    seconds, processor = found["seconds"], found["processor"]
    exchange = difference(seconds[AFTER], seconds[NOTHING]).median
    records: list[Record] = []
    shares = []
    for name in (THREAD, POLL):
        left = difference(seconds[name], seconds[NOTHING]).median
        shares.append(1 - left / exchange if exchange > 0 else 0.0)
        records.append(
            {
                "overlap": name,
                "exchange_ms": 1e3 * exchange,
                "exchange_over_backward": exchange / found["backward"],
                "hidden": shares[-1],
                "exchange_processor_ms": 1e3
                * difference(processor[name], processor[NOTHING]).median,
            }
        )
    return records, [Check("share of the exchange hidden", max(shares), 0.8, "higher")]


BENCH = Bench(
    "the exchange during the backward pass, and our step against DDP",
    OverlapBench,
    run,
    {"overlap": measure},
    ranks=2,
)
