"""`dist-ml bench layouts`: a distribution for each layer of a chain. Words of coordinate descent
over those of the exact programme, what each evaluates, and words over what experts take. Nothing
runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.plan.chain_layouts import (
    Chain,
    ChainCosts,
    LayerRules,
    Layouts,
    descend,
    exact,
    grids,
    uniform,
)


@dataclass(frozen=True)
class LayoutsBench:
    """Every chain on every number of ranks."""

    chains: tuple[tuple[int, ...], ...]  # widths of the layers
    rows: tuple[int, ...]  # samples or tokens of a step, of each chain
    ranks: tuple[int, ...]
    axes: int  # of the grid, at most


def run(config: LayoutsBench, worlds: Worlds) -> Result:  # noqa: ARG001 - nothing is measured
    records = [
        _record(widths, rows, ranks, config.axes)
        for widths, rows in zip(config.chains, config.rows, strict=True)
        for ranks in config.ranks
    ]
    return Result("layouts", records, checks_of(records))


def checks_of(records: Sequence[Record]) -> list[Check]:
    gaps = [record["descent over exact"] - 1 for record in records]
    return [
        Check("problems", len(records), 12, "higher"),
        Check("largest gap of coordinate descent", max(gaps), 0.05, "lower"),
    ]


def _record(widths: tuple[int, ...], rows: int, ranks: int, axes: int) -> Record:
    chains = [Chain(widths, rows, grid) for grid in grids(ranks, axes)]
    best = [exact(chain) for chain in chains]
    found = [descend(chain, starts(chain)) for chain in chains]
    place = min(range(len(chains)), key=lambda index: best[index].words)
    words, descended = best[place].words, min(each.words for each in found)
    flat = Chain(widths, rows, (ranks,))
    pairs = ChainCosts(flat).total(uniform(flat, "columns", "inner"))
    data = ChainCosts(flat).total(uniform(flat, "rows"))
    return {
        "chain": "-".join(map(str, widths)),
        "rows": rows,
        "ranks": ranks,
        "grid": " x ".join(map(str, chains[place].grid)),
        "words": round(words),
        "descent over exact": descended / words,
        "data parallel over exact": data / words,
        "pairs of column and row over exact": pairs / words,
        "evaluations of exact": _evaluations(best),
        "evaluations of descent over exact": _evaluations(found) / _evaluations(best),
        "layers": " ".join("".join(rule[0] for rule in rules) for rules in best[place].rules),
    }


def starts(chain: Chain) -> list[tuple[LayerRules, ...]]:
    """What experts would take, and what begins with the other half of a pair."""
    return [
        uniform(chain, "rows"),
        uniform(chain, "columns", "inner"),
        uniform(chain, "inner", "columns"),
    ]


def _evaluations(found: Sequence[Layouts]) -> Any:
    return sum(each.evaluations for each in found)


BENCH = Bench(
    "a distribution for each layer: coordinate descent against the exact programme",
    LayoutsBench,
    run,
    {},
    ranks=1,
)
