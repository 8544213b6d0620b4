"""`dist-ml bench operator_crossover`: from which batch on do 2-D layers move less than 1-D ones?

1-D layers move activations alone, 2-D ones fewer of them, but weights, too. Planned for any number
of ranks; measured in training steps: words and milliseconds.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, least, most
from dist_ml.bench.operator_crossover_part import LAYOUTS, measure
from dist_ml.bench.operator_formulas import crossover_batch
from dist_ml.bench.worlds import Worlds
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import ratio
from dist_ml.operator_parallel.layout import sides_for
from dist_ml.operator_parallel.words import Layer, model_words

_TOLERANCE = 0.02


@dataclass(frozen=True)
class OperatorCrossoverBench:
    """What to plan and to run."""

    train: TrainConfig  # optimizer, kernel and the like
    planned_width: int  # of square layers, in the plans
    planned_ranks: tuple[int, ...]  # squares
    mpi: str
    ranks: int  # that steps are measured on
    rate: str | None  # of links between hosts of one rank each, as tc writes it; null: on this node
    width: int  # of the layers of the measured model
    num_layers: int
    batches: tuple[int, ...]
    rounds: int  # of alternation
    plot: str | None  # file to draw words and milliseconds against the batch to (extra: plot)

    def __post_init__(self) -> None:
        for ranks in (*self.planned_ranks, self.ranks):
            if round(ranks**0.5) ** 2 != ranks or ranks < 4:
                raise ConfigError(
                    f"{ranks} ranks make no square grid of sides above 1; use 4, 9, …"
                )
        if self.num_layers < 2 or self.num_layers % 2:
            raise ConfigError(f"num_layers={self.num_layers} must be even: layers come in pairs")


def run(config: OperatorCrossoverBench, worlds: Worlds) -> Result:
    planned = [planned_record(config.planned_width, ranks) for ranks in config.planned_ranks]
    measured = measured_records(config, _measured(config, worlds))
    if config.plot is not None:
        from dist_ml.bench.operator_plot import draw

        where = config.rate or "one node"
        draw(measured, config.planned_ranks, config.width, where, config.plot)
    return Result("operator_crossover", [*planned, *measured], checks_of(planned, measured))


def planned_record(width: int, ranks: int) -> dict[str, Any]:
    """Where the plans of a pair of square layers cross, beside the closed form."""
    theory, found = crossover_batch(width, ranks), crossover(width, ranks)
    return {
        "planned ranks": ranks,
        "planned width": width,
        "crossover": found,
        "6 m / (4 sqrt(P) - 1)": theory,
        "over theory": found / theory,
        "1d words there": pair_words("1d", width, ranks, ranks * round(theory / ranks)),
        "2d words there": pair_words("2d", width, ranks, ranks * round(theory / ranks)),
    }


def crossover(width: int, ranks: int) -> float:
    """The batch at which the planned words are equal: between multiples of the ranks, where all
    divides, they are linear in the batch.
    """

    def more(batch: int) -> int:
        return pair_words("1d", width, ranks, batch) - pair_words("2d", width, ranks, batch)

    low, high = 0, 1
    while more(high * ranks) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if more(middle * ranks) >= 0 else (middle, high)
    below, above = more(max(low, 1) * ranks), more(high * ranks)
    if low == 0 or below == above:
        return float(high * ranks)
    return ranks * (low + below / (below - above))


def pair_words(layout: str, width: int, ranks: int, batch: int) -> int:
    """Of rank 0 in a step of two square layers, all gradients wanted, without biases."""
    layers = [Layer(f"layers.{i}", width, width) for i in range(2)]
    sides = sides_for(layout, ranks, ())
    words = model_words(layout, sides, layers, batch, first_gradient=True, bias=False)
    return sum(map(sum, words))


def measured_records(
    config: OperatorCrossoverBench, found: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row a batch: planned words of the layers and those in the ledger, and the step's time."""
    layers = [Layer(f"layers.{i}", config.width, config.width) for i in range(config.num_layers)]
    records: list[dict[str, Any]] = []
    for batch in config.batches:
        record: dict[str, Any] = {"batch": batch}
        seconds = found[str(batch)]["seconds"]
        for layout in LAYOUTS:
            sides = sides_for(layout, config.ranks, ())
            words = max(
                sum(map(sum, model_words(layout, sides, layers, batch, rank)))
                for rank in range(config.ranks)
            )
            record[f"{layout} planned words"] = words + found[str(batch)]["objective"][layout]
            record[f"{layout} words"] = found[str(batch)]["words"][layout]
            record[f"{layout} ms"] = 1e3 * statistics.median(seconds[layout])
        record["2d words over 1d"] = record["2d words"] / record["1d words"]
        record["2d ms over 1d"] = ratio(seconds["2d"], seconds["1d"]).median
        records.append(record)
    return records


def checks_of(planned: Sequence[Record], measured: Sequence[Record]) -> list[Check]:
    """Plans against theory, steps against plans."""
    over = [record["over theory"] for record in planned]
    unlike = most(
        abs(record[f"{layout} words"] / record[f"{layout} planned words"] - 1)
        for record in measured
        for layout in LAYOUTS
    )
    return [
        Check("planned crossover over theory's, most", most(over), 1 + _TOLERANCE, "lower"),
        Check("planned crossover over theory's, least", least(over), 1 - _TOLERANCE, "higher"),
        Check("words of a step unlike planned", unlike, _TOLERANCE, "lower"),
    ]


def _measured(config: OperatorCrossoverBench, worlds: Worlds) -> Any:
    widths = (config.width,) * (config.num_layers + 1)
    trains = {
        str(batch): to_arguments(with_widths(config.train, widths, batch))
        for batch in config.batches
    }
    arguments = {"trains": trains, "rounds": config.rounds}
    given: dict[str, Any] = {"ranks": config.ranks, "mpi": config.mpi}
    environment = {"OMP_NUM_THREADS": "1"}
    if config.rate is None:
        return worlds.measure("operator_crossover", arguments, **given, environment=environment)
    with worlds.network(config.ranks, config.rate) as network:
        return worlds.measure(
            "operator_crossover", arguments, **given, network=network, environment=environment
        )


BENCH = Bench(
    "the batch from which 2-D layers move less than 1-D ones, planned and measured",
    OperatorCrossoverBench,
    run,
    {"operator_crossover": measure},
    ranks=4,
)
