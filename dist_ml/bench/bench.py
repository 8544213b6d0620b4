"""What a benchmark is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dist_ml.bench.form import Result
from dist_ml.bench.osu import Series
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator

Part: TypeAlias = Callable[[Communicator, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Bench:
    """One benchmark: `run` asks `Worlds` to measure its `parts`, each a function that every rank of
    a world runs.

    `config` is the dataclass that `configs/bench/NAME.yaml` fills. Arguments and results of parts
    are JSON values; the result is rank 0's.
    """

    help: str
    config: type
    run: Callable[[Any, Worlds], Result]
    parts: Mapping[str, Part]
    ranks: int  # that it starts when the user names no number
    latencies: Callable[[Result], Sequence[Series]] | None = None  # of allreduces, for --format osu
