"""`dist-ml bench gemm`: distributed products against the local kernel on the same cores, against
Heat, and how much overlap hides.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_ml.bench import gemm_part
from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.launch.emulated_network import missing
from dist_ml.launch.mpiexec import cores
from dist_ml.measure.compare import ratio


@dataclass(frozen=True)
class GemmBench:
    """What to compare."""

    size: int  # m = n = k of the float32 product
    algorithms: tuple[str, ...]  # against the local kernel
    rounds: int  # of alternation
    heat: bool  # against Heat's matmul, where that is installed
    emulated_network: bool  # overlap on 4 hosts over shaped links, where this machine can make them
    emulated_rate: str  # of each link
    emulated_panel: int  # width of the panels there


def run(config: GemmBench, worlds: Worlds) -> Result:
    arguments = {
        "size": config.size,
        "algorithms": config.algorithms,
        "rounds": config.rounds,
        "heat": config.heat,
    }
    measured = worlds.measure("gemm", arguments)
    seconds, roof = measured["seconds"], measured["peak"]
    flops = 2.0 * config.size**3
    kernel = seconds["local kernel"]
    records: list[Record] = [
        {
            "product": name,
            "GFLOP/s": flops / statistics.median(times) / 1e9,
            "of the local kernel": ratio(kernel, times).median,
        }
        for name, times in seconds.items()
    ]
    checks = [
        Check("auto over the local kernel", ratio(kernel, seconds["auto"]).median, 0.92, "higher")
    ]
    heat = [name for name in seconds if name.startswith("heat")]
    if roof is not None:
        rates = {"the local kernel": kernel, **({"Heat": seconds[heat[0]]} if heat else {})}
        records += _roof_records(roof, flops, rates)
    if heat:
        checks.append(
            Check("auto over Heat", ratio(seconds[heat[0]], seconds["auto"]).median, 2.2, "higher")
        )
    elif config.heat:
        records.append({"left out": "Heat", "because": "it is not installed (extra: heat)"})
    if config.emulated_network:
        _overlap(config, worlds, records, checks)
    return Result("gemm", records, checks)


def _roof_records(
    roof: float, flops: float, seconds: Mapping[str, Sequence[float]]
) -> list[Record]:
    """The peak of all cores, and how many times faster than each candidate it is."""
    records: list[Record] = [
        {"measured": "peak GFLOP/s of all cores (multiply-adds on registers)", "value": roof / 1e9}
    ]
    for name, times in seconds.items():
        what = f"times faster than {name} that nothing can exceed here"
        records.append({"measured": what, "value": roof * statistics.median(times) / flops})
    return records


def _overlap(config: GemmBench, worlds: Worlds, records: list[Record], checks: list[Check]) -> None:
    lacking = missing()
    if lacking is not None:
        records.append({"left out": "overlap in the emulated network", "because": lacking})
        return
    arguments = {"size": config.size, "panel": config.emulated_panel, "rounds": config.rounds}
    with worlds.network(4, config.emulated_rate) as network:
        before = network.traffic()
        found = worlds.measure("gemm overlap", arguments, ranks=4, network=network)
        crossed = [now - then for now, then in zip(network.traffic(), before, strict=True)]
    times, processor = (
        found["seconds"],
        {name: statistics.median(used) for name, used in found["processor"].items()},
    )
    together, apart = (
        times["together"],
        list(zip(times["communication"], times["computing"], strict=True)),
    )
    hidden = statistics.median(
        (x + y - both) / min(x, y) for (x, y), both in zip(apart, together, strict=True)
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    records += [
        {"summa on 4 hosts": name, "seconds": value, "processor seconds": processor[name]}
        for name, value in seconds.items()
    ]
    # All hosts share this machine's cores: what communicating adds to their work is time that
    # nothing can hide.
    added = (processor["together"] - processor["computing"]) / cores()
    busy = processor["together"] / (cores() * seconds["together"])
    records.append({"measured": "share of the cores' time in use, together", "value": busy})
    most = 1 - added / min(seconds["communication"], seconds["computing"])
    records.append({"measured": "share that could hide at that processor time", "value": most})
    records.append(
        {
            "measured": "bytes that left each host",
            "value": str([traffic.sent_bytes for traffic in crossed]),
        }
    )
    checks.append(Check("overlap hides of the smaller", hidden, 0.8, "higher"))


PARTS = {"gemm": gemm_part.measure, "gemm overlap": gemm_part.measure_overlap}
BENCH = Bench(
    "distributed products against the local kernel, Heat and the network",
    GemmBench,
    run,
    PARTS,
    ranks=2,
)
