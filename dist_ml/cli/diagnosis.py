"""From facts to findings: pure functions, one a line of `dist-ml doctor`."""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dist_ml.cli.facts import RankFacts, WorldFacts
from dist_ml.launch.extras import install_command

State = Literal["ok", "warn", "fail"]
_SMALL_SHARED_MEMORY = 1 << 28


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it (empty when it is ok)."""

    state: State
    subject: str
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(facts: WorldFacts) -> list[Finding]:
    """All findings, in the order of what depends on what."""
    return [check(facts) for check in CHECKS]


def world(facts: WorldFacts) -> Finding:
    if facts.singletons:
        return Finding("fail", "world", *_split(facts.singletons))
    size, nodes = len(facts.ranks), len(facts.node_sizes)
    shape = f" ({' + '.join(map(str, facts.node_sizes))})" if nodes > 1 else ""
    text = f"{_count(size, 'rank')} on {_count(nodes, 'node')}{shape}"
    if facts.launched_size not in (None, size):
        remedy = "start with the launcher of the MPI library that is loaded"
        return Finding(
            "fail",
            "world",
            f"{text}, but the launcher says that it started {facts.launched_size}",
            remedy,
        )
    return Finding(
        "ok",
        "world",
        text if facts.ranks[0].vendor else f"{text}, without MPI (no launcher started this)",
    )


def library(facts: WorldFacts) -> Finding:
    vendors = sorted({rank.vendor or "none" for rank in facts.ranks})
    if len(vendors) > 1:
        return Finding(
            "fail",
            "MPI library",
            f"ranks use different ones: {', '.join(vendors)}",
            "install the same one on all nodes",
        )
    first = facts.ranks[0]
    return Finding(
        "ok",
        "MPI library",
        f"{first.vendor}, MPI {first.standard}"
        if first.vendor
        else "none loaded; one rank needs none",
    )


def thread_level(facts: WorldFacts) -> Finding:
    level = facts.ranks[0].thread_level
    if level in (None, "MULTIPLE"):
        return Finding(
            "ok", "thread level", "MPI_THREAD_MULTIPLE" if level else "not asked: no MPI is loaded"
        )
    remedy = "use an MPI built with MPI_THREAD_MULTIPLE (all wheels are), or do without overlap"
    return Finding(
        "warn",
        "thread level",
        f"MPI_THREAD_{level}: no helper thread can drive communication behind computation",
        remedy,
    )


def threads(facts: WorldFacts) -> Finding:
    crowded = [rank for rank in facts.ranks if rank.threads > len(rank.cores)]
    if crowded:
        first = crowded[0]
        load = f"{_count(first.threads, 'torch thread')} on {_count(len(first.cores), 'core')}"
        text = f"rank {first.rank} on {first.host} runs {load}"
        more = f", and {_count(len(crowded) - 1, 'more rank')} likewise" if len(crowded) > 1 else ""
        return Finding(
            "warn",
            "threads",
            text + more,
            f"set OMP_NUM_THREADS={len(first.cores)}, or bind each rank to more cores",
        )
    least, most = min(r.threads for r in facts.ranks), max(r.threads for r in facts.ranks)
    amount = str(least) if least == most else f"{least} to {most}"
    return Finding(
        "ok",
        "threads",
        f"{amount} of torch a rank, on {_count(min(len(r.cores) for r in facts.ranks), 'core')} "
        "or more",
    )


def oversubscription(facts: WorldFacts) -> Finding:
    worst, worst_load = "", 1.0
    for host, ranks in _by_host(facts).items():
        cores, running = (
            frozenset[int]().union(*(rank.cores for rank in ranks)),
            sum(rank.threads for rank in ranks),
        )
        if running / len(cores) > worst_load:
            worst_load = running / len(cores)
            idle = max(rank.host_cores for rank in ranks) - len(cores)
            sharing = f"{_count(len(ranks), 'rank')} with {_count(running, 'thread')}"
            worst = f"{sharing} share {_count(len(cores), 'core')} of {host}"
            worst += f", which has {idle} idle" if idle > 0 else ""
    if worst:
        return Finding(
            "warn",
            "cores",
            worst,
            "start fewer ranks a node, set OMP_NUM_THREADS lower, or bind ranks to cores of their "
            "own",
        )
    return Finding("ok", "cores", "every thread has a core of its own")


def sums(facts: WorldFacts) -> Finding:
    wrong = [dtype for dtype, right in facts.our_sums.items() if not right]
    if wrong:
        return Finding(
            "fail",
            "sums",
            f"wrong for {', '.join(wrong)}",
            "use another MPI library, and please report this one",
        )
    return Finding(
        "ok", "sums", f"right for {', '.join(facts.our_sums) or 'no dtype: none was tried'}"
    )


def raw_sums(facts: WorldFacts) -> Finding:
    right = [dtype for dtype, is_right in facts.raw_sums.items() if is_right]
    wrong = [dtype for dtype, is_right in facts.raw_sums.items() if not is_right]
    if not facts.raw_sums:
        return Finding("ok", "raw MPI sums", "not tried: no MPI is loaded")
    text = (
        f"right for {', '.join(right) or 'nothing'}; bfloat16 not tried (garbage on Open MPI, "
        "abort on MPICH) and not needed"
    )
    basic = [dtype for dtype in wrong if dtype != "float16"]
    if basic:
        return Finding(
            "fail",
            "raw MPI sums",
            f"{text}; wrong for {', '.join(basic)}",
            "use another MPI library",
        )
    return Finding("ok", "raw MPI sums", text)


def shared_windows(facts: WorldFacts) -> Finding:
    if facts.shared_window:
        remedy = f"enlarge or clean {_SHARED}, or choose an allreduce that needs no shared memory"
        return Finding("warn", "shared windows", facts.shared_window, remedy)
    return Finding(
        "ok",
        "shared windows",
        "ranks of a node see each other's memory"
        if facts.raw_sums
        else "not tried: no MPI is loaded",
    )


def shared_memory(facts: WorldFacts) -> Finding:
    rank = min(facts.ranks, key=lambda rank: rank.shared_memory_free_bytes or 0)
    if not rank.shared_memory_bytes:
        return Finding(
            "warn",
            _SHARED,
            f"{rank.host} has none",
            "mount a tmpfs there: ranks of a node communicate through it",
        )
    free = rank.shared_memory_free_bytes or 0
    text = f"{_megabytes(rank.shared_memory_bytes)} on {rank.host}, {_megabytes(free)} free"
    if free < _SMALL_SHARED_MEMORY:
        remedy = (
            f"enlarge it (docker run --shm-size=2g; mount -o remount,size=2g {_SHARED}), and "
            "remove what dead runs left there"
        )
        return Finding("warn", _SHARED, text, remedy)
    return Finding("ok", _SHARED, text)


def numba(_facts: WorldFacts) -> Finding:
    if importlib.util.find_spec("numba") is None:
        return Finding(
            "warn",
            "numba",
            "not installed: fused reductions fall back to torch",
            install_command("numba"),
        )
    return Finding("ok", "numba", "installed: reductions are compiled")


CHECKS: tuple[Callable[[WorldFacts], Finding], ...] = (
    world,
    library,
    thread_level,
    threads,
    oversubscription,
    sums,
    raw_sums,
    shared_windows,
    shared_memory,
    numba,
)
_SHARED = "/dev/shm"


def _by_host(facts: WorldFacts) -> dict[str, list[RankFacts]]:
    hosts: dict[str, list[RankFacts]] = {}
    for rank in facts.ranks:
        hosts.setdefault(rank.host, []).append(rank)
    return hosts


def _split(message: str) -> tuple[str, str]:
    """A message of rule and remedy, at its first full stop."""
    text, _, remedy = message.partition(". ")
    return text, remedy


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
