"""All that is known of a run's steps before it starts."""

import os
from dataclasses import dataclass
from typing import Any

from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, MachineError
from dist_ml.measure.cost_model import Link
from dist_ml.plan import calibrated
from dist_ml.plan.networked import Machine
from dist_ml.plan.step_memory import most_bytes
from dist_ml.plan.step_plan import StepPlan, plan_step
from dist_ml.plan.step_seconds import StepSeconds, step_seconds
from dist_ml.train.axis_words import sums_all_gradients


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
    ranks_per_node = node_ranks(num_ranks, num_nodes)
    plan = plan_step(config, num_ranks)
    memory = most_bytes(plan)
    try:
        require_known_seconds(config)
        machine = nodes_like_this(ranks_per_node, link, threads)
    except (ConfigError, MachineError) as error:
        return Prediction(plan, ranks_per_node, memory, None, str(error))
    memory = {"program": machine.processor.base_bytes, **memory}
    return Prediction(plan, ranks_per_node, memory, step_seconds(plan, machine))


def node_ranks(num_ranks: int, num_nodes: int) -> int:
    """On the fullest of so many nodes."""
    if num_nodes > num_ranks:
        raise ConfigError(
            f"{num_nodes} nodes for {num_ranks} rank{'s' * (num_ranks > 1)}: every node has one at "
            f"least; use --nodes {num_ranks} or fewer"
        )
    return -(-num_ranks // num_nodes)


def nodes_like_this(ranks_per_node: int, link: Link | None, threads: int) -> Machine:
    """Joined by `link`. `MachineError` where this one isn't calibrated."""
    processor = calibrated.load(ranks_per_node, threads)
    return Machine(processor, os.cpu_count() or 1, ranks_per_node, link)


def require_known_seconds(config: TrainConfig) -> None:
    """`ConfigError` for an exchange whose seconds can't be told."""
    if not sums_all_gradients(config):
        raise ConfigError(
            "sparse exchange and local steps are not modelled; use data_parallel=dense, zero1 or "
            "zero2, and sparse=none"
        )
