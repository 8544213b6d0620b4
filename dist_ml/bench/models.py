"""`dist-ml bench models`: our training step of each model over the same model in plain PyTorch with
its best settings, on one rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dist_ml.bench import cnn, transformer
from dist_ml.bench.bench import Bench
from dist_ml.bench.cnn import CnnBench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.transformer import TransformerBench
from dist_ml.bench.worlds import Worlds
from dist_ml.errors import ConfigError

COMPARED: dict[str, Callable[[Any, Worlds], Result]] = {
    "cnn": cnn.run,
    "transformer": transformer.run,
}


@dataclass(frozen=True)
class ModelsBench:
    """What to compare."""

    models: tuple[str, ...]  # which: cnn, transformer
    cnn: CnnBench
    transformer: TransformerBench

    def __post_init__(self) -> None:
        if not self.models or not set(self.models) <= set(COMPARED):
            raise ConfigError(f"models={list(self.models)}: use some of {', '.join(COMPARED)}")


def run(config: ModelsBench, worlds: Worlds) -> Result:
    rows: list[Record] = []
    checks: list[Check] = []
    for name in config.models:
        result = COMPARED[name](getattr(config, name), worlds)
        rows += result.records
        checks += result.checks
    return Result("models", rows, checks)


BENCH = Bench(
    "our training steps of a CNN and a Transformer against plain PyTorch loops",
    ModelsBench,
    run,
    {"cnn step": cnn.measure, "transformer step": transformer.measure},
    ranks=1,
)
