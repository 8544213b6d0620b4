"""What happened since the last logged step, for a line of metrics."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dist_ml.comm.traffic import Tally
from dist_ml.train.step import Step
from dist_ml.train.trainer import Trainer


@dataclass
class StepTotals:
    """Over the steps of a line of metrics; the same on all ranks."""

    metrics: list[float]
    loss: float = 0.0
    num_samples: int = 0


class Interval:
    """Samples, loss, seconds, phases and traffic since `begin`; the last three, and the samples
    beside them, since `restart` where that came later (a checkpoint).
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._traffic_of_all = trainer.mesh.world.traffic
        self.begin()

    def begin(self) -> None:
        self._sums = StepTotals([0.0] * len(self._trainer.objective.metric_names))
        self.restart()

    def restart(self) -> None:
        """Measure anew; the means are still those since `begin`."""
        self.num_samples = 0
        self._start = time.perf_counter()
        self._traffic = self._traffic_of_all.snapshot()

    def add(self, step: Step) -> None:
        self.num_samples += step.num_samples
        sums = self._sums
        sums.metrics = [a + b for a, b in zip(sums.metrics, step.metrics, strict=True)]
        sums.loss += step.loss * step.num_samples
        sums.num_samples += step.num_samples

    def end(self) -> tuple[float, dict[str, float]]:
        """Seconds since `begin`, and their phases."""
        return time.perf_counter() - self._start, self._trainer.phases.take()

    def words_by_axis(self) -> dict[str, int]:
        """Words that this rank has sent since `begin`."""
        words: dict[str, int] = {}
        for (axis, _), tally in self._traffic_of_all.since(self._traffic).items():
            words[axis] = words.get(axis, 0) + tally.words_sent
        return words

    def state_dict(self) -> dict[str, Any]:
        """What the means are made of, as JSON."""
        return dataclasses.asdict(self._sums)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = StepTotals(**{known.name: state[known.name] for known in fields(StepTotals)})

    def values(self, step: Step) -> dict[str, Any]:
        """One line of metrics.jsonl, without the step's number."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        phases = dict(self._trainer.phases.seconds)
        traffic = self._traffic_of_all.since(self._traffic)
        sums = self._sums
        named = dict(zip(self._trainer.objective.metric_names, sums.metrics, strict=True))
        num_items = sums.num_samples * self._trainer.objective.items_per_sample
        accuracy = {"train_accuracy": named["correct"] / num_items} if named else {}
        return {
            "epoch": step.epoch,
            "loss": step.loss,
            "mean_loss": sums.loss / sums.num_samples,
            **accuracy,
            "learning_rate": self._trainer.learning_rate,
            "samples_per_second": self.num_samples / seconds,
            "communication_share": phases.get("exchange", 0.0) / seconds,
            "seconds": phases,
            **self._trainer.diagnostics(),
            "traffic": {
                f"{axis}.{collective}": _moved(tally)
                for (axis, collective), tally in traffic.items()
            },
        }


def _moved(tally: Tally) -> dict[str, float]:
    moved: dict[str, float] = {
        "words": tally.words_sent,
        "messages": tally.messages,
        "bytes": tally.bytes_sent,
    }
    return {**moved, "seconds": tally.seconds} if tally.seconds else moved
