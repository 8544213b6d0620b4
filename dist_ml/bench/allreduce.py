"""`dist-ml bench allreduce`: the family against both MPIs' own and gloo, on one node and in the
emulated network.

One world of each MPI measures its candidates in turn, and the worlds themselves take turns, so that
all see the same machine. In the emulated network every MPI runs twice: as it comes, and as the
emulated network sets it up for all our runs.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dist_ml.bench.allreduce_checks import TUNED, emulated_network_checks, node_checks
from dist_ml.bench.allreduce_worlds import World, emulated_worlds
from dist_ml.bench.bench import Bench
from dist_ml.bench.candidates import GLOO, LIMIT, ORDINARY, RAW, Call, Candidates
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.osu import Series
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.measure.compare import alternate, seconds_per_call

Network = Literal["node", "emulated_1gbit", "emulated_100mbit"]

_NODE_CANDIDATES = (
    "shared_memory",
    ORDINARY,
    "ring",
    "rabenseifner",
    "native",
    RAW,
    GLOO,
    LIMIT,
)
_RATES = {"emulated_1gbit": "1gbit", "emulated_100mbit": "100mbit"}


@dataclass(frozen=True)
class AllreduceBench:
    """What to sweep; sizes are of float32 buffers."""

    network: Network  # one node's memory, or the emulated network's shaped links
    mpis: tuple[str, ...]  # wheels to compare in one run
    ranks: tuple[int, ...]  # on one node
    sizes_bytes: tuple[int, ...]  # on one node
    hosts: tuple[int, ...]  # network: numbers of hosts, with one rank each
    nodes: int  # network: hosts with two ranks each, for hierarchical against flat; 0 leaves it out
    emulated_sizes_bytes: tuple[int, ...]  # network
    rounds: int  # of alternation inside a world
    worlds: int  # times that each world is started, in turn
    round_seconds: float  # that short calls are repeated for, in each round
    plot: str | None  # file to draw time against size to (extra: plot)

    def __post_init__(self) -> None:
        if min(self.sizes_bytes + self.emulated_sizes_bytes) < 4:
            raise ConfigError(
                "sizes_bytes and emulated_sizes_bytes must each hold a float32, 4 bytes"
            )


def run(config: AllreduceBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    checks: list[Check] = []
    if config.network == "node":
        for ranks in config.ranks:
            kinds = [World(mpi, TUNED, _NODE_CANDIDATES, {}) for mpi in config.mpis]
            found = list(_measured(config, worlds, kinds, ranks, config.sizes_bytes, None))
            records += found
            checks += node_checks(found, ranks)
    else:
        layouts = [(hosts, hosts) for hosts in config.hosts] + (
            [(config.nodes, 2 * config.nodes)] if config.nodes else []
        )
        for hosts, ranks in layouts:
            with worlds.network(hosts, _RATES[config.network]) as network:
                kinds = [
                    kind for mpi in config.mpis for kind in emulated_worlds(mpi, ranks > hosts)
                ]
                found = list(
                    _measured(config, worlds, kinds, ranks, config.emulated_sizes_bytes, network)
                )
            records += found
            checks += emulated_network_checks(found, hosts, ranks, _RATES[config.network])
    if config.plot is not None:
        from dist_ml.bench.plots import time_against_size

        time_against_size(records, config.plot)
    return Result("allreduce", records, checks)


def latencies(result: Result) -> list[Series]:
    """One for each algorithm on each world, in the order of the table."""
    found: dict[str, dict[int, float]] = {}
    for row in result.records:
        title = "{algorithm}, {mpi}, {setting}, {ranks} ranks, hosts: {hosts}".format(**row)
        found.setdefault(title, {})[row["bytes"]] = 1e3 * row["ms"]
    return [Series(title, microseconds) for title, microseconds in found.items()]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Seconds a call by size, candidate and round."""
    found = {}
    made = Candidates(comm)
    for size in arguments["sizes_bytes"]:
        timed = {
            name: _repeated(comm, made.call(name, size // 4), arguments["round_seconds"])
            for name in arguments["candidates"]
        }
        found[str(size)] = alternate(timed, arguments["rounds"])
        made.free()
    made.close()
    return found


def _repeated(comm: Communicator, call: Call, round_seconds: float) -> Callable[[], float]:
    """Seconds of a call that is repeated for about `round_seconds`. The first one connects and
    compiles; a second one tells how long the short ones take.
    """
    first = seconds_per_call(comm, call)
    typical = first if first > 100 * round_seconds else seconds_per_call(comm, call)
    calls = max(1, min(2000, int(round_seconds / typical)))
    return lambda: seconds_per_call(comm, call, calls)


def _measured(
    config: AllreduceBench,
    worlds: Worlds,
    kinds: Sequence[World],
    ranks: int,
    sizes: Sequence[int],
    network: EmulatedNetwork | None,
) -> Iterator[Record]:
    """One record a (size, world, candidate), from all rounds of all worlds of that kind."""
    hosts = network.num_hosts if network is not None else 1
    seconds: dict[tuple[int, int, str], list[float]] = {}
    for number in range(config.worlds):
        for index in range(len(kinds)) if number % 2 == 0 else reversed(range(len(kinds))):
            kind = kinds[index]
            arguments = {
                "sizes_bytes": sizes,
                "candidates": kind.candidates,
                "rounds": config.rounds,
                "round_seconds": config.round_seconds,
            }
            place = {"ranks": ranks, "mpi": kind.mpi, "network": network}
            environment = kind.environment or None
            found = worlds.measure("allreduce", arguments, environment=environment, **place)  # type: ignore[arg-type]
            for size in sizes:
                for name in kind.candidates:
                    seconds.setdefault((size, index, name), []).extend(found[str(size)][name])
    for (size, index, name), values in sorted(seconds.items(), key=lambda item: item[0][0]):
        kind = kinds[index]
        median = statistics.median(values)
        yield {
            "network": config.network,
            "hosts": hosts,
            "ranks": ranks,
            "bytes": size,
            "mpi": kind.mpi,
            "setting": kind.setting,
            "algorithm": name,
            "ms": 1e3 * median,
            "fastest_ms": 1e3 * min(values),
            "effective_GB_s": 2 * (ranks - 1) / ranks * size / median / 1e9,
        }


BENCH = Bench(
    "the allreduce family against both MPIs' own and gloo",
    AllreduceBench,
    run,
    {"allreduce": measure},
    ranks=2,
    latencies=latencies,
)
