"""`dist-ml bench operator`: a training step whose layers are shared by ranks, against torch's
tensor parallelism over gloo, and against one rank on one core.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.configured import to_arguments, with_widths
from dist_ml.bench.form import Check, Record, Result, milliseconds, most
from dist_ml.bench.operator_part import DTENSOR, DTENSOR_SHARDED, ONE_RANK, measure, ours
from dist_ml.bench.reproduce import difference
from dist_ml.bench.worlds import Worlds
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.compare import fastest, ratio

_CHECKED = "1d"


@dataclass(frozen=True)
class OperatorBench:
    """What to run."""

    train: TrainConfig  # optimizer, kernel and the like
    mpi: str
    ranks: int  # of the operator axis
    width: int  # of every layer
    num_layers: int
    batch_size: int
    layouts: tuple[str, ...]  # of ours
    num_samples: int  # of the data set
    num_losses: int  # first steps whose losses are compared
    steps: int  # measured together
    rounds: int  # of alternation

    def __post_init__(self) -> None:
        if self.num_layers < 2 or self.num_layers % 2:
            raise ConfigError(
                f"num_layers={self.num_layers} must be even: layers are cut in pairs, outputs of "
                "one and inputs of the next"
            )
        if _CHECKED not in self.layouts:
            raise ConfigError(
                f"layouts={list(self.layouts)} must hold {_CHECKED}, which is compared with "
                "DTensor's"
            )


def run(config: OperatorBench, worlds: Worlds) -> Result:
    widths = (config.width,) * (config.num_layers + 1)
    arguments = {
        "train": to_arguments(with_widths(config.train, widths, config.batch_size)),
        "layouts": config.layouts,
        "dtensor": True,
        "num_samples": config.num_samples,
        "num_losses": config.num_losses,
        "steps": config.steps,
        "rounds": config.rounds,
    }
    found = worlds.measure(
        "operator",
        arguments,
        ranks=config.ranks,
        mpi=config.mpi,
        environment={"OMP_NUM_THREADS": "1"},
    )
    return Result("operator", step_records(found["seconds"]), operator_checks(found, config.ranks))


def step_records(seconds: Mapping[str, Sequence[float]]) -> list[Record]:
    """A row a candidate: its time, the quartiles, our 1-D step over it, and its share of ours."""
    own = seconds[ours(_CHECKED)]
    return [
        {
            "candidate": name,
            **milliseconds(values),
            "1d over it": ratio(own, values).median,
            "of 1d": ratio(values, own).median,
        }
        for name, values in seconds.items()
    ]


def operator_checks(found: Mapping[str, Any], ranks: int) -> list[Check]:
    """DTensor by the faster of its two ways; losses of all candidates against one rank's."""
    seconds, losses = found["seconds"], found["losses"]
    best = fastest(seconds, (DTENSOR, DTENSOR_SHARDED))
    own = seconds[ours(_CHECKED)]
    apart = most(difference(each, losses[ONE_RANK]) for each in losses.values())
    return [
        Check(
            f"step over DTensor on gloo, {ranks} ranks, 1d",
            ratio(own, seconds[best]).median,
            0.7,
            "lower",
        ),
        Check(
            "speed-up over one rank on one core",
            ratio(seconds[ONE_RANK], own).median,
            1.7,
            "higher",
        ),
        Check("relative difference of losses to one rank's", apart, 1e-5, "lower"),
    ]


BENCH = Bench(
    "a step with layers shared by ranks, against DTensor and one rank",
    OperatorBench,
    run,
    {"operator": measure},
    ranks=2,
)
