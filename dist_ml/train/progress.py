"""What a run has come to so far: the figures of its summary, which go on where a run is resumed."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dist_ml.comm.traffic import Tally
from dist_ml.train.interval import Interval
from dist_ml.train.step import Step


@dataclass
class Progress:
    """Totals of the training steps of all processes that this run has had; of this rank, but for
    those that all ranks have alike. What ran after the last checkpoint of an earlier process is not
    in them.
    """

    train_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)  # sent in training, by axis
    num_samples: int = 0
    num_skipped: int = 0
    last_loss: float = float("nan")
    num_saved: int = 0  # checkpoints
    save_seconds: float = 0.0  # for which training stood still
    # of ranks that were lost: who, in which step, and the seconds until the others went on
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    traffic: dict[str, float] = field(default_factory=dict)  # of earlier processes

    def add(self, step: Step) -> None:
        self.last_loss = step.loss
        self.num_skipped += step.skipped

    def end_interval(self, interval: Interval) -> None:
        """Add an interval's seconds, words and samples, and have it begin anew."""
        seconds, phases = interval.end()
        self.train_seconds += seconds
        self.words = dict(Counter(self.words) + Counter(interval.words_by_axis()))
        self.num_samples += interval.num_samples
        for name, spent in phases.items():
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + spent
        interval.restart()

    def all_traffic(self, now: Tally) -> dict[str, float]:
        """The ledger's totals `now`, and those of earlier processes."""
        return {
            name: value + self.traffic.get(name, 0)
            for name, value in dataclasses.asdict(now).items()
        }

    def state_dict(self, now: Tally) -> dict[str, Any]:
        """As JSON; `now`: the ledger's totals."""
        return {**dataclasses.asdict(self), "traffic": self.all_traffic(now)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for known in dataclasses.fields(self):
            setattr(self, known.name, state[known.name])
