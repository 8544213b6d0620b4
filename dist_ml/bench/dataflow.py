"""`dist-ml bench dataflow`: what the operators of a Transformer's encoder layer compute and move,
what they would have to, and the layer with fused passes between its contractions.

In the form of Ivanov, Dryden, Ben-Nun, Li and Hoefler, "Data movement is all you need" (MLSys
2021),
on processors: a stretch is a contraction, or the passes that stand between two of them.

    bound    bytes that come into a stretch and are needed after it (plan/dataflow.py)
    moved    bytes that its operators read and write, one after the other
    MUE      memory usage efficiency: bound / moved x bytes a second / those of a copy of more than
             the cache holds; above 1 where tensors were in the cache
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.dataflow_part import FUSED, PASSES, SEPARATE, measure
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import ratio

# Of training BERT-large on a V100, as the paper has it: percent of flops and of the time.
PUBLISHED = {
    "contraction": (99.80, 61.0),
    "normalization": (0.17, 25.5),
    "element-wise": (0.03, 13.5),
}


@dataclass(frozen=True)
class DataflowBench:
    """What to take apart."""

    batch: int
    tokens: int
    heads: int
    width: int
    hidden: int
    dropout: float
    threads: int
    rounds: int  # of each operator, and of alternation of the layer's forms
    compiled: bool  # torch.compile, too: needs a C++ compiler, and takes a minute

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"width={self.width} is not a multiple of heads={self.heads}, but all heads take "
                "as many features; use one that is"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is no share; use 0 or more, and less than 1")


def run(config: DataflowBench, worlds: Worlds) -> Result:
    sizes = [config.batch, config.tokens, config.heads, config.width, config.hidden]
    arguments = {**vars(config), "sizes": sizes}
    environment = {"OMP_NUM_THREADS": str(config.threads)}
    found = worlds.measure("dataflow", arguments, ranks=1, environment=environment)
    rows = [{"pass": each, **stretch} for each in PASSES for stretch in found["stretches"][each]]
    records = [
        *_stretches(rows, found["bytes_per_second"]),
        *_classes(rows),
        *_passes(found),
        *_layers(found),
        *_layouts(found),
    ]
    return Result("dataflow", records, checks(rows, found))


def checks(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> list[Check]:
    """What is moved less, and whether that saves time here."""
    moved, layers = found["moved"], found["layers"]
    saved = 1 - moved[FUSED] / moved[SEPARATE]
    passes = [
        [sum(pair) for pair in zip(*layers[name].values(), strict=True)]
        for name in (FUSED, SEPARATE)
    ]
    share = sum(row["flops"] for row in rows if row["class"] == "contraction")
    return [
        Check("share of bytes that fused passes save", saved, 0.2291, "higher"),
        Check("layer with fused passes over torch's", ratio(*passes).median, 1.0, "lower"),
        Check(
            "flops that are contractions",
            share / sum(row["flops"] for row in rows),
            0.99,
            "higher",
        ),
    ]


def _stretches(rows: Sequence[Mapping[str, Any]], copied: float) -> Iterator[Record]:
    total = sum(row["flops"] for row in rows)
    for row in rows:
        rate = row["moved"] / row["seconds"]
        yield {
            "pass": row["pass"],
            "operators": row["name"],
            "class": row["class"],
            "flop_%": 100 * row["flops"] / total,
            "bound_MB": row["bound"] / 1e6,
            "moved_MB": row["moved"] / 1e6,
            "ms": 1e3 * row["seconds"],
            "GB/s": rate / 1e9,
            "MUE": row["bound"] / row["moved"] * rate / copied,
        }


def _classes(rows: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
    """Shares in percent, beside those that the paper has for a V100."""
    names = ("flops", "bound", "moved", "seconds")
    totals = {name: sum(row[name] for row in rows) for name in names}
    for kind, (flop, runtime) in PUBLISHED.items():
        own = {name: sum(row[name] for row in rows if row["class"] == kind) for name in names}
        yield {
            "operators": kind,
            "flop_%": 100 * own["flops"] / totals["flops"],
            "bound_%": 100 * own["bound"] / totals["moved"],
            "moved_%": 100 * own["moved"] / totals["moved"],
            "time_%": 100 * own["seconds"] / totals["seconds"],
            "V100_flop_%": flop,
            "V100_time_%": runtime,
        }


def _passes(found: Mapping[str, Any]) -> Iterator[Record]:
    """The fused ones, of a step together."""
    for name, each in found["passes"].items():
        yield {
            "fused_pass": name,
            "moved_MB": each["moved"] / 1e6,
            "ms": 1e3 * each["seconds"],
            "GB/s": each["moved"] / each["seconds"] / 1e9,
        }


def _layers(found: Mapping[str, Any]) -> Iterator[Record]:
    moved = found["moved"]
    for name, seconds in found["layers"].items():
        medians = {each: 1e3 * statistics.median(seconds[each]) for each in PASSES}
        known = name in moved
        yield {
            "layer": name,
            "forward_ms": medians["forward"],
            "backward_ms": medians["backward"],
            "moved_MB": moved[name] / 1e6 if known else None,
            "saved_%": 100 * (1 - moved[name] / moved[SEPARATE]) if known else None,
        }


def _layouts(found: Mapping[str, Any]) -> Iterator[Record]:
    for step in found["layouts"]:
        named = {key: step[key] for key in ("step", "takes", "gives")}
        yield {**named, "ms": 1e3 * step["spent"], "rows_ms": 1e3 * step["rows"]}


BENCH = Bench(
    "what an encoder layer's operators move, and what they have to; passes fused",
    DataflowBench,
    run,
    {"dataflow": measure},
    ranks=1,
)
