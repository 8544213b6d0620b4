"""`dist-ml bench gemm_words`: are products right, are their words those of the plan, and how near
are plans to the bounds?
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, least, most
from dist_ml.bench.gemm_checks import measure_memory
from dist_ml.bench.gemm_products import measure_products
from dist_ml.bench.gemm_volumes import volume_records
from dist_ml.bench.worlds import Worlds
from dist_ml.gemm import family
from dist_ml.gemm.bounds import memory_independent
from dist_ml.gemm.product_shape import ProductShape

SHOWN = ("products", "error over bound", "ledger not as planned", "seen", "seen, not as planned",
         "relayouts")  # fmt: skip


@dataclass(frozen=True)
class GemmWordsBench:
    """What to run and to plan."""

    worlds: tuple[int, ...]  # numbers of ranks on which products run
    cases: int  # random products an algorithm and world
    volume_size: int  # side of the square matrices of the volumes table
    memory_size: int  # side of the square matrices whose peak memory is measured
    shapes: tuple[str, ...]  # m x n x k of the planned table
    planned_ranks: tuple[int, ...]  # of the planned table
    memory_factors: tuple[float, ...]  # memory limits of the planned table, in shares of A, B and C


def run(config: GemmWordsBench, worlds: Worlds) -> Result:
    arguments = {"cases": config.cases, "volume_size": config.volume_size}
    found = {
        ranks: worlds.measure("gemm products", arguments, ranks=ranks) for ranks in config.worlds
    }
    volumes = {
        (name, ranks): words for ranks in found for name, words in found[ranks]["volumes"].items()
    }
    # Every buffer above 64 KiB is then its own mapping, given back when it is freed, so that the
    # system's figure is the buffers'.
    apart = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    peaks = worlds.measure("gemm memory", {"size": config.memory_size}, ranks=4, environment=apart)
    planned, checks = _planned(config)
    records = [
        *({"ranks": ranks, **{key: found[ranks][key] for key in SHOWN}} for ranks in found),
        *volume_records(config.volume_size, volumes),
        *peaks,
        *planned,
    ]
    checks = [*product_checks(list(found.values())), *checks, *memory_checks(peaks)]
    return Result("gemm_words", records, checks)


def product_checks(found: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Of the products of all worlds: each is right, and moved what its plan says. Where a product
    is made of messages alone, that is what was seen below the ledger; the ledger, which enters a
    formula for the rest, is held against the plan apart from that.
    """
    moved_twice = sum(each["relayouts wrong"] for each in found)
    return [
        Check("products", sum(each["products"] for each in found), 1, "higher"),
        Check("products whose words were seen", sum(each["seen"] for each in found), 1, "higher"),
        Check(
            "worst error over its bound",
            most(each["error over bound"] for each in found),
            1.0,
            "lower",
        ),
        Check(
            "products whose seen words differ from the plan",
            sum(each["seen, not as planned"] for each in found),
            0,
            "lower",
        ),
        Check(
            "products whose ledger differs from the plan",
            sum(each["ledger not as planned"] for each in found),
            0,
            "lower",
        ),
        Check("redistributions that moved more than what changes owner", moved_twice, 0, "lower"),
    ]


def memory_checks(peaks: Sequence[Record]) -> list[Check]:
    """The plan's bytes are what the system saw; far less would mean that nothing was seen."""
    shares = [peak["measured / planned"] for peak in peaks]
    return [
        Check("measured peak over the planned memory, most", most(shares), 1.05, "lower"),
        Check("measured peak over the planned memory, least", least(shares), 0.5, "higher"),
    ]


def bound_checks(
    unlimited: Sequence[float],
    limited: Sequence[float],
    beyond: Sequence[float],
    of_used: Sequence[float],
) -> list[Check]:
    """Words of plans over the proven bounds: without a memory limit; with one, up to 4096 ranks;
    and at more. `of_used`: over the bound of as many ranks as the plan uses, each with its share;
    what is below that is wrong.
    """
    checks = [
        Check("words over the tight bound, most", most(unlimited), 1.29, "lower"),
        Check("words over the tight bound, least", least(of_used), 1 - 1e-9, "higher"),
    ]
    what = "words over COSMA's limited-memory bound"
    if limited:
        checks.append(Check(f"{what}, up to 4096 ranks", most(limited), 1.15, "lower"))
    if beyond:
        checks.append(Check(f"{what}, at more ranks", most(beyond), 1.15, "lower"))
    return checks


def _planned(config: GemmWordsBench) -> tuple[list[Record], list[Check]]:
    """The planned table, and what is claimed of it."""
    records: list[Record] = []
    unlimited: list[float] = []
    of_used: list[float] = []
    limited: dict[bool, list[float]] = {True: [], False: []}  # by: up to 4096 ranks
    for text, ranks in itertools.product(config.shapes, config.planned_ranks):
        m, n, k = (int(size) for size in text.split("x"))
        shape = ProductShape(m, n, k, ranks)
        plan = family.plan("auto", shape)
        unlimited.append(plan.words / plan.bound_words)
        used = memory_independent(m, n, k, math.prod(plan.grid))
        of_used.append(plan.words / used if used else 1.0)
        point: dict[str, Any] = {
            "shape": text,
            "ranks": ranks,
            "grid": " x ".join(map(str, plan.grid)),
            "/ tight bound": unlimited[-1],
        }
        for factor in config.memory_factors:
            memory = int(factor * shape.word_bytes * (m * k + k * n + m * n) / ranks)
            within = family.plan("auto", replace(shape, memory=memory))
            assert within.limited_bound_words
            over = within.words / within.limited_bound_words
            limited[ranks <= 4096].append(over)
            point[f"{factor:g} shares / COSMA's"] = over
        records.append(point)
    return records, bound_checks(unlimited, limited[True], limited[False], of_used)


PARTS = {"gemm products": measure_products, "gemm memory": measure_memory}
BENCH = Bench(
    "products checked, their words against plans and bounds", GemmWordsBench, run, PARTS, ranks=4
)
