"""`dist-ml bench sparse`: training throughput with sparse gradients, against dense ones and DDP,
over slow links.

All candidates train the same model in the same processes, in turn, so that they see the same
machine. Dense is the best of MPI's own allreduce, our ring, and our ring behind the backward pass.
"""

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, alternate, median_ratio
from dist_ml.bench.shared_model import Ddp, SharedModel, seconds_a_step
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.traffic import Tally
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.dense_reducer import DenseReducer
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sparse_choice import resolve
from dist_ml.data_parallel.sparse_reducer import SparseReducer
from dist_ml.errors import ConfigError
from dist_ml.launch.emulated_network import EmulatedNetwork

DENSE, RING, BEHIND, DDP = "dense", "dense ring", "dense ring, overlapped", "ddp gloo"
SLOW = (DENSE, RING, BEHIND, DDP)
SETTLING = {
    DENSE: 0,
    RING: 0,
    BEHIND: 0,
    DDP: 1,
}  # steps before the first that is timed; of the others, 3
WARM_UP_WORDS = 100_000
TIMES = {"100mbit": 12.0, "1gbit": 3.0}


@dataclass(frozen=True)
class SparseBench:
    """What to train, over which links."""

    hosts: int  # of the emulated network, one rank each; 0: on this machine's own memory
    rates: tuple[str, ...]  # of their links, as tc writes them
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch: int  # samples a rank
    kernel: str  # of the linear layers' products
    lr: float
    sparse: dict[str, SparseConfig]  # label -> what is compared
    rounds: int  # of alternation
    steps: int  # a round, of sparse candidates; dense ones take one
    ddp: bool  # compare with DDP over gloo

    def __post_init__(self) -> None:
        if not self.sparse:
            raise ConfigError(
                "sparse={} names no candidate; add one, as sparse.oktopk.allreduce=oktopk"
            )


def run(config: SparseBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    arguments = to_mapping(config)
    if not config.hosts:
        return _result("memory", config, worlds.measure("sparse", arguments), [], records, checks)
    environment = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    with EmulatedNetwork(config.hosts, config.rates[0]) as network:
        for rate in config.rates:
            network.set_rate(rate)
            before = network.traffic()
            measured = worlds.measure(
                "sparse",
                arguments,
                ranks=config.hosts,
                mpi="mpich",
                network=network,
                environment=environment,
            )
            crossed = [
                after.sent_bytes - first.sent_bytes
                for after, first in zip(network.traffic(), before, strict=True)
            ]
            _result(rate, config, measured, crossed, records, checks)
    return Result("sparse", records, checks)


def _result(
    rate: str,
    config: SparseBench,
    measured: Any,
    crossed: list[int],
    records: list[Record],
    checks: list[Check],
) -> Result:
    seconds, figures = measured["seconds"], measured["figures"]
    dense = min(
        (name for name in (DENSE, RING, BEHIND)), key=lambda name: statistics.median(seconds[name])
    )
    for name, values in seconds.items():
        step = statistics.median(values)
        records.append(
            {
                "rate": rate,
                "candidate": name,
                "step_ms": 1e3 * step,
                "samples_per_second": config.batch * measured["ranks"] / step,
                "over_dense": median_ratio(seconds[dense], values),
                "over_ddp": median_ratio(seconds[DDP], values) if DDP in seconds else 0.0,
                **figures[name],
            }
        )
    best = min(
        (name for name in seconds if name not in SLOW),
        key=lambda name: statistics.median(seconds[name]),
    )
    if rate in TIMES:
        ratio = median_ratio(seconds[dense], seconds[best])
        checks.append(Check(f"C3 best sparse over dense at {rate}", ratio, TIMES[rate], "higher"))
    if crossed:
        expected = sum(figure["bytes_sent"] for figure in figures.values()) * config.rounds
        checks.append(
            Check(
                f"C3 bytes on the links over those counted at {rate}",
                min(crossed) / expected,
                0.5,
                "higher",
            )
        )
    return Result("sparse", records, checks)


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step by candidate and round; bytes, messages and phases of a step of each
    candidate's last round.
    """
    config = from_mapping(SparseBench, arguments)
    shared = SharedModel(config.widths, config.batch, config.kernel, config.lr, comm)
    steps: dict[str, Callable[[], None]] = {}
    native, ring = family.make("native", comm), family.make("ring", comm)
    for allreduce in (
        native,
        ring,
    ):  # connections and compiled loops; a step of it all would take long on a slow link
        allreduce(np.zeros(WARM_UP_WORDS, np.float32))
    reducers: dict[str, GradientReducer] = {
        DENSE: DenseReducer(shared.gradients, native),
        RING: DenseReducer(shared.gradients, ring),
        BEHIND: DenseReducer(shared.gradients, ring, "thread"),
    }
    for label, sparse in config.sparse.items():
        chosen = resolve(sparse, shared.gradients.num_words, comm)
        if chosen.allreduce != "none":
            reducers[label] = SparseReducer(shared.gradients, shared.names, comm, chosen)
    for label, reducer in reducers.items():
        steps[label] = lambda reducer=reducer: shared.step(reducer)  # type: ignore[misc]
    if config.ddp:
        steps[DDP] = Ddp(config.widths, config.batch, config.lr, comm).step
    figures: dict[str, dict[str, Any]] = {}

    def timed(label: str) -> float:
        """Seconds a step, and what it moves."""
        count, reducer = 1 if label in SLOW else config.steps, reducers.get(label)
        if label not in figures:
            for _ in range(SETTLING.get(label, 3)):
                steps[label]()
        if reducer is not None:
            reducer.diagnostics()
        before = comm.traffic.snapshot()
        seconds = seconds_a_step(comm, steps[label], count)
        moved = comm.traffic.since(before).values()
        figures[label] = _figures(
            moved, count, reducer.diagnostics() if reducer is not None else {}
        )
        return seconds

    seconds = alternate({label: functools.partial(timed, label) for label in steps}, config.rounds)
    return {"ranks": comm.size, "figures": figures, "seconds": seconds}


def _figures(
    moved: Iterable[Tally], steps: int, diagnostics: Mapping[str, float]
) -> dict[str, Any]:
    """A step's bytes and messages, the density of its result, and the milliseconds of its
    phases.
    """
    tallies = list(moved)
    return {
        "bytes_sent": sum(tally.bytes_sent for tally in tallies) / steps,
        "messages": sum(tally.messages for tally in tallies) / steps,
        "density_result": diagnostics.get("density_result", 1.0),
        **{
            f"{phase}_ms": 1e3 * diagnostics.get(f"seconds_{phase}", 0.0) / steps
            for phase in ("select", "exchange", "apply")
        },
    }


BENCH = Bench(
    "training with sparse gradients against dense ones and DDP",
    SparseBench,
    run,
    {"sparse": measure},
    ranks=4,
)
