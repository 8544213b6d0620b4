"""The limits that `dist-ml bench allreduce` holds its records against."""

from collections.abc import Sequence

from dist_ml.bench.candidates import GLOO, LIMIT, ORDINARY, RAW
from dist_ml.bench.form import Check, Record

TUNED, AS_IT_COMES = (
    "tuned",
    "as it comes",
)  # as the emulated network sets the MPI up for all our runs; as its own defaults are
_LARGE_BYTES = 10_000_000
_SMALL_BYTES = 4096
_BITS_PER_SECOND = {"1gbit": 1e9, "100mbit": 1e8}
_MOST_OF_THE_BOUND = 1.15  # one limit, whatever the MPI and the number of ranks a host


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
            ordinary = max(record["ms"] for record in at if record["algorithm"] == ORDINARY)
            what = f"speedup for an ordinary tensor at {ranks} ranks, {size:,} bytes"
            checks.append(Check(what, theirs / ordinary, 1.0, "higher"))
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
            limit = _MOST_OF_THE_BOUND
            checks.append(
                Check(f"time over the wire's bound, {where}, {mpi}", ours / bound, limit, "lower")
            )
            speedup = 1.5 if ranks == hosts else 2.0
            for setting, best in _raw(at).items():
                what = f"MPI {setting} over ours, {where}, {mpi}"
                checks.append(Check(what, best / ours, speedup, "higher"))
    return checks


def _raw(records: Sequence[Record]) -> dict[str, float]:
    """Milliseconds of the faster MPI's own allreduce, by how it was set up: as it comes, and with
    the settings that we give it, which are a part of the recipe.
    """
    return {
        setting: min(
            record["ms"]
            for record in records
            if record["algorithm"] == RAW and record["setting"] == setting
        )
        for setting in (AS_IT_COMES, TUNED)
        if any(r["algorithm"] == RAW and r["setting"] == setting for r in records)
    }
