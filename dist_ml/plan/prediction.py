"""All that is known of a run's steps before it starts."""

import os
from dataclasses import dataclass
from typing import Any

from dist_ml.config.train import TrainConfig
from dist_ml.errors import MachineError
from dist_ml.measure.cost_model import Link
from dist_ml.plan import calibrated
from dist_ml.plan.networked import Machine
from dist_ml.plan.step_memory import rank_bytes
from dist_ml.plan.step_plan import StepPlan, plan_step
from dist_ml.plan.step_seconds import StepSeconds, step_seconds


@dataclass(frozen=True)
class Prediction:
    """`memory`: of the rank that holds most, by what it is for; `seconds`: None where this machine
    isn't calibrated.
    """

    plan: StepPlan
    ranks_per_node: int
    memory: dict[str, int]
    seconds: StepSeconds | None
    why_no_seconds: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """For a JSON file."""
        timed: dict[str, Any] = {}
        if self.seconds is not None:
            timed = {
                "seconds": self.seconds.total,
                "seconds_by_phase": self.seconds.phases,
                "bubble": self.seconds.bubble,
            }
        return {
            "mesh": self.plan.sizes,
            "schedule": self.plan.schedule.name,
            "microbatches": self.plan.schedule.num_microbatches,
            "words_by_axis": self.plan.words,
            "memory_bytes": self.memory,
            **timed,
        }


def predict(
    config: TrainConfig, num_ranks: int, num_nodes: int, link: Link | None, threads: int
) -> Prediction:
    """Of a run on so many ranks of nodes like this one, joined by `link`."""
    plan = plan_step(config, num_ranks)
    held = [rank_bytes(plan, rank) for rank in range(plan.sizes["pipeline"])]
    memory = max(held, key=lambda parts: sum(parts.values()))
    ranks_per_node = -(-num_ranks // num_nodes)
    try:
        processor = calibrated.load(ranks_per_node, threads)
    except MachineError as error:
        return Prediction(plan, ranks_per_node, memory, None, str(error))
    machine = Machine(processor, os.cpu_count() or 1, ranks_per_node, link)
    memory = {"program": processor.base_bytes, **memory}
    return Prediction(plan, ranks_per_node, memory, step_seconds(plan, machine))
