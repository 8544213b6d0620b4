"""`dist-ml bench sparse`: training throughput with sparse gradients, against dense ones and DDP
with torch's own compression hooks, over slow links.

All candidates train the same model in the same processes, in turn, so that they see the same
machine. Each is compared with the fastest baseline whose gradients have as many bits on the wire:
MPI's own allreduce, our ring, our ring during the backward pass, and DDP with fp32; our ring and
DDP's hooks with 16 bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_ml.bench import sparse_step
from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.sparse_step import BASELINES, BITS16, DDP, DENSE, FP32
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.config.sparse import SparseConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import fastest, ratio, spread

TIMES = {"100mbit": 12.0, "1gbit": 3.0}  # a sparse step's part of the best baseline's, by rate
# Ethernet, IP and TCP headers are 5 % of full packets, their acknowledgements less than as much.
SEEN_AT_MOST, SEEN_AT_LEAST = 1.12, 0.99
LEAST_BYTES = 1e6  # of all ranks in a step
NOT_OUR_MESSAGES = (DENSE,)  # what MPI moves in its own collective is not for us to state


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
    arguments = to_mapping(config)
    if not config.hosts:
        return Result(
            "sparse", *summary("memory", config.batch, worlds.measure("sparse", arguments))
        )
    records: list[Record] = []
    checks: list[Check] = []
    environment = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    with worlds.network(config.hosts, config.rates[0]) as network:
        for rate in config.rates:
            network.set_rate(rate)
            measured = worlds.measure(
                "sparse",
                arguments,
                ranks=config.hosts,
                mpi="mpich",
                network=network,
                environment=environment,
            )
            rows, found = summary(rate, config.batch, measured)
            records += rows
            checks += [*found, *link_checks(rate, measured["figures"])]
    return Result("sparse", records, checks)


def summary(rate: str, batch: int, measured: Mapping[str, Any]) -> tuple[list[Record], list[Check]]:
    """A row a candidate beside the fastest baseline of its own precision; and for each precision
    the fastest sparse candidate over that baseline, at rates that have a limit.
    """
    seconds, figures = measured["seconds"], measured["figures"]
    best = {
        precision: fastest(seconds, [name for name in BASELINES if name in seconds
                                     and BASELINES[name] == precision])
        for precision in (FP32, BITS16)
    }  # fmt: skip
    records: list[Record] = []
    for name, values in seconds.items():
        step, baseline = spread(values), best.get(figures[name]["precision"], best[BITS16])
        records.append(
            {
                "rate": rate,
                "candidate": name,
                "step_ms": 1e3 * step.median,
                "low_ms": 1e3 * step.low,
                "high_ms": 1e3 * step.high,
                "samples_per_second": batch * measured["ranks"] / step.median,
                "baseline": baseline,
                "over_baseline": ratio(seconds[baseline], values).median,
                **figures[name],
            }
        )
    checks = []
    for precision, baseline in best.items():
        own = [name for name in seconds
               if name not in BASELINES and figures[name]["precision"] == precision]  # fmt: skip
        if rate in TIMES and own:
            times = ratio(seconds[baseline], seconds[fastest(seconds, own)]).median
            what = f"best {precision} sparse over best {precision} baseline at {rate}"
            checks.append(Check(what, times, TIMES[rate], "higher"))
    return records, checks


def link_checks(rate: str, figures: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Bytes that the hosts' interfaces saw over those that the ledger states, of candidates that
    are made of our messages: headers and acknowledgements come on top, and nothing may be missing.
    Steps of few bytes are left out, which are mostly headers.
    """
    shares = [
        figure["bytes_seen"] / figure["bytes_sent"]
        for name, figure in figures.items()
        if name not in NOT_OUR_MESSAGES
        and not name.startswith(DDP)
        and figure["bytes_sent"] >= LEAST_BYTES
    ]
    if not shares:
        return []
    return [
        Check(f"bytes seen over stated at {rate}, most", max(shares), SEEN_AT_MOST, "lower"),
        Check(f"bytes seen over stated at {rate}, least", min(shares), SEEN_AT_LEAST, "higher"),
    ]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`sparse_step.measure` of a configuration."""
    config = from_mapping(SparseBench, arguments)
    return sparse_step.measure(
        comm,
        widths=config.widths,
        batch=config.batch,
        kernel=config.kernel,
        lr=config.lr,
        sparse=config.sparse,
        ddp=config.ddp,
        rounds=config.rounds,
        steps=config.steps,
    )


BENCH = Bench(
    "training with sparse gradients against dense ones and DDP",
    SparseBench,
    run,
    {"sparse": measure},
    ranks=4,
)
