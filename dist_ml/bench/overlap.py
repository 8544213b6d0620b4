"""`dist-ml bench overlap`: how much of the exchange hides behind the backward pass, and our step
against DDP over gloo.

All candidates train one model in the same processes, in turn: with no exchange, with one after the
backward pass, behind it by a thread, behind it by polling, with a 16-bit wire, and torch's DDP.

hidden = 1 - (step behind - step without exchange) / (step after - step without exchange)
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, alternate, median_ratio
from dist_ml.bench.shared_model import Ddp, SharedModel, seconds_a_step
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.data_parallel.dense_reducer import DenseReducer, Overlap
from dist_ml.data_parallel.gradients import FlatGradients
from dist_ml.data_parallel.reduced_gradients import Full
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.launch.emulated_network import EmulatedNetwork

NOTHING, AFTER, THREAD, POLL, NARROW, DDP = (
    "no exchange",
    "after",
    "thread",
    "poll",
    "thread, bf16 wire",
    "ddp gloo",
)
_LEARNING_RATE = 1e-4


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
        found = _measured(
            config,
            worlds,
            config.widths,
            config.batch,
            "shared_memory",
            (NOTHING, AFTER, THREAD, DDP),
            None,
        )
        return Result("overlap", *_on_a_node(found))
    with EmulatedNetwork(config.ranks, config.network) as network:
        candidates: tuple[str, ...] = (NOTHING, AFTER, THREAD, POLL, NARROW, DDP)
        records, checks = _against_ddp(
            _measured(config, worlds, config.widths, config.batch, "ring", candidates, network)
        )
        if config.hidden_widths:
            candidates = (NOTHING, AFTER, THREAD, POLL)
            found = _measured(
                config,
                worlds,
                config.hidden_widths,
                config.hidden_batch,
                "ring",
                candidates,
                network,
            )
            more, hidden = _hidden(found)
            records, checks = [*records, *more], [*checks, *hidden]
    return Result("overlap", records, checks)


class NoExchange(GradientReducer):
    """Leaves every rank with its own gradients."""

    def __init__(self, gradients: FlatGradients) -> None:
        self._gradients = gradients
        self.slots = gradients.slots

    def begin(self) -> None:
        self._gradients.begin()

    def finish(self) -> Full:
        self._gradients.complete()
        return Full(self._gradients.flat, self.slots)


class Clock(NoExchange):
    """Takes the seconds of each backward pass."""

    def __init__(self, gradients: FlatGradients) -> None:
        super().__init__(gradients)
        self._begun = 0.0
        self.seconds: list[float] = []

    def start(self) -> None:
        self._begun = time.perf_counter()

    def finish(self) -> Full:
        self.seconds.append(time.perf_counter() - self._begun)
        return super().finish()


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and processor seconds a step by candidate and round, and the seconds of a backward
    pass.
    """
    plain = family.make(arguments["algorithm"], comm)
    shared = SharedModel(
        arguments["widths"], arguments["batch"], "torch", _LEARNING_RATE, comm, plain.allocate
    )
    overlaps: dict[str, Overlap] = {AFTER: "none", THREAD: "thread", POLL: "poll"}
    processor: dict[str, list[float]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name in arguments["candidates"]:
        if name == DDP:
            steps[name] = Ddp(arguments["widths"], arguments["batch"], _LEARNING_RATE, comm).step
            continue
        reducer: GradientReducer = NoExchange(shared.gradients)
        if name == NARROW:
            reducer = DenseReducer(
                shared.gradients, family.make(arguments["algorithm"], comm, "bf16"), "thread"
            )
        elif name != NOTHING:
            reducer = DenseReducer(shared.gradients, plain, overlaps[name])
        steps[name] = lambda reducer=reducer: shared.step(reducer)  # type: ignore[misc]

    def timed(name: str) -> float:
        before = time.process_time()
        seconds = seconds_a_step(comm, steps[name], arguments["steps"])
        processor.setdefault(name, []).append((time.process_time() - before) / arguments["steps"])
        return seconds

    candidates = {name: (lambda name=name: timed(name)) for name in steps}
    alternate(candidates, 1)
    processor.clear()
    return {
        "seconds": alternate(candidates, arguments["rounds"]),
        "processor": processor,
        "backward": _backward(comm, shared),
    }


def _backward(comm: Communicator, shared: SharedModel) -> float:
    """Seconds of a backward pass without exchange: the median of a few steps."""
    clock = Clock(shared.gradients)
    comm.barrier()
    for _ in range(5):
        shared.step(clock)
    return statistics.median(clock.seconds)


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


def _on_a_node(found: Mapping[str, Any]) -> tuple[list[Record], list[Check]]:
    seconds = found["seconds"]
    return found["records"], [
        Check(
            "B3 step over DDP with gloo, one node",
            median_ratio(seconds[AFTER], seconds[DDP]),
            0.6,
            "lower",
        ),
        Check(
            "B3 step over no exchange, one node",
            median_ratio(seconds[AFTER], seconds[NOTHING]),
            1.15,
            "lower",
        ),
    ]


def _against_ddp(found: Mapping[str, Any]) -> tuple[list[Record], list[Check]]:
    seconds = found["seconds"]
    network = found["records"][0]["network"]
    ratio = median_ratio(seconds[THREAD], seconds[DDP])
    narrow = median_ratio(seconds[NARROW], seconds[DDP])
    return found["records"], [
        Check(f"B3 step over DDP with gloo, {network}", ratio, 0.8, "lower"),
        Check(f"B3 step over DDP with gloo, {network}, bf16 wire", narrow, 0.8, "lower"),
    ]


def _hidden(found: Mapping[str, Any]) -> tuple[list[Record], list[Check]]:
    """Of the better of the two ways to overlap; differences of the same round, which saw the
    machine in the same state.
    """
    seconds = found["seconds"]

    def beyond_nothing(name: str) -> float:
        return float(
            statistics.median(
                some - none for some, none in zip(seconds[name], seconds[NOTHING], strict=True)
            )
        )

    exchange = beyond_nothing(AFTER)
    records = list(found["records"])
    hidden = {}
    for name in (THREAD, POLL):
        hidden[name] = 1 - beyond_nothing(name) / exchange
        processor = statistics.median(found["processor"][name]) - statistics.median(
            found["processor"][NOTHING]
        )
        share = exchange / found["backward"]
        records.append(
            {
                "overlap": name,
                "exchange_ms": 1e3 * exchange,
                "exchange_over_backward": share,
                "hidden": hidden[name],
                "exchange_processor_ms": 1e3 * processor,
            }
        )
    return records, [Check("B3 share of the exchange hidden", max(hidden.values()), 0.8, "higher")]


BENCH = Bench(
    "the exchange behind the backward pass, and our step against DDP",
    OverlapBench,
    run,
    {"overlap": measure},
    ranks=2,
)
