"""`dist-ml bench kernel`: local products by kernel and shape, under the roofline of this machine.

The roof is min(peak, bandwidth x intensity): peak is what multiply-adds on registers reach (where
there is no compiler to measure it with, and for 2-byte words, the fastest product in this run),
bandwidth what a copy of a large array reads and writes, and intensity a product's operations over
the bytes of its three matrices (Williams, Waterman, Patterson, "Roofline", CACM 2009).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, least
from dist_ml.bench.kernel_part import BF16, TUNED, measure, parse
from dist_ml.bench.worlds import Worlds
from dist_ml.kernels.tuner import FALLBACK

_BAR = 40


@dataclass(frozen=True)
class KernelBench:
    """What to compare."""

    shapes: tuple[str, ...]  # m x n x k with how A and B are stored: 128x3072x3072:NT
    loops: bool  # the three loops, too, on the smallest shape
    threads: int  # of each product
    rounds: int  # of alternation
    plot: str | None  # file to draw the roofline to (extra: plot)

    def __post_init__(self) -> None:
        for shape in self.shapes:
            parse(shape)


def run(config: KernelBench, worlds: Worlds) -> Result:
    measured = worlds.measure(
        "kernel", vars(config), ranks=1, environment={"OMP_NUM_THREADS": str(config.threads)}
    )
    words, bandwidth = measured["words"], measured["bytes_per_second"]
    peaks = _peaks(measured["rates"], words, measured["peak"], config.threads)
    records = roofline(measured["rates"], bandwidth, words, peaks)
    if config.plot is not None:
        from dist_ml.bench.plots import draw_roofline

        draw_roofline(records, peaks, bandwidth / 1e9, config.plot)
    for num_bytes, rate in sorted(peaks.items()):
        records.append({"measured": f"peak GFLOP/s, {num_bytes} bytes a word", "value": rate})
    records.append(
        {"measured": "bandwidth GB/s (copy, read and written)", "value": bandwidth / 1e9}
    )
    return Result("kernel", records, tuner_checks(measured["rates"], measured["chosen"]))


def tuner_checks(
    rates: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]
) -> list[Check]:
    """The tuner's choices were timed as a candidate of their own, also where the choice is torch's
    kernel; and no kernel that it could have chosen is much faster.
    """
    over_torch = least(by_kernel[TUNED] / by_kernel["torch"] for by_kernel in rates.values())
    over_fastest = least(
        by_kernel[TUNED] / max(by_kernel[name] for name in by_kernel if name not in (TUNED, BF16))
        for by_kernel in rates.values()
    )
    others = sum(name != FALLBACK for name in chosen.values())
    return [
        Check("tuned kernel over torch, worst shape", over_torch, 0.97, "higher"),
        Check("tuned kernel over the fastest, worst shape", over_fastest, 0.9, "higher"),
        Check("shapes for which the tuner chose another kernel than torch", others, 1, "higher"),
    ]


def _peaks(
    rates: Mapping[str, Mapping[str, float]],
    words: Mapping[str, int],
    per_thread: float | None,
    threads: int,
) -> dict[int, float]:
    """GFLOP/s that nothing exceeds, by bytes a word."""
    fastest = {
        num_bytes: max(
            rate
            for by_kernel in rates.values()
            for name, rate in by_kernel.items()
            if words[name] == num_bytes
        )
        for num_bytes in set(words.values())
    }
    return (
        fastest
        if per_thread is None
        else fastest | {4: max(fastest[4], threads * per_thread / 1e9)}
    )


def roofline(
    rates: Mapping[str, Mapping[str, float]],
    bytes_per_second: float,
    words: Mapping[str, int],
    peaks: Mapping[int, float],
) -> list[Record]:
    """A point for each shape and kernel, with a bar that shows how near the roof it is."""
    records: list[Record] = []
    for shape, by_kernel in rates.items():
        sizes = parse(shape)
        for name, rate in sorted(by_kernel.items(), key=lambda item: -item[1]):
            intensity = (
                2.0
                * math.prod(sizes[:3])
                / (words[name] * (sizes.m * sizes.k + sizes.k * sizes.n + sizes.m * sizes.n))
            )
            roof = min(peaks[words[name]], intensity * bytes_per_second / 1e9)
            bar = "#" * max(1, round(_BAR * min(1.0, rate / roof)))
            point = {
                "shape": shape,
                "kernel": name,
                "GFLOP/s": rate,
                "FLOP/byte": intensity,
                "roof": roof,
            }
            records.append({**point, "of the roof": rate / roof, "": bar})
    return records


BENCH = Bench(
    "local products by kernel and shape, under the roofline",
    KernelBench,
    run,
    {"kernel": measure},
    ranks=1,
)
