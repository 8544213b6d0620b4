"""How long a planned step takes on a machine, phase by phase.

    forward, backward   the operators, and the collectives of shared layers
    pipeline            in their place: the dry run of the schedule with these times
    exchange            gradients summed over the data axis; overlapped: what backward can't hide
    update              the optimizer's pass over what a rank updates
    other               of every step, whatever it computes

Ranks beyond a node's cores take turns: compute takes so many times as long.
"""

from dataclasses import dataclass

from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import unrolled
from dist_ml.plan.machine import Processor
from dist_ml.plan.model_work import Pass
from dist_ml.plan.networked import Machine
from dist_ml.plan.step_plan import StageWork, StepPlan

# Of an overlapped exchange, what a backward pass as long hides (benchmarks/dense.md).
_HIDDEN = 0.7


@dataclass(frozen=True)
class StepSeconds:
    """By phase; `bubble`: the idle share of the pipeline's ranks."""

    phases: dict[str, float]
    bubble: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.phases.values())


def step_seconds(plan: StepPlan, machine: Machine) -> StepSeconds:
    """Of a step on the slowest rank."""
    times = _Times(plan, machine)
    phases, bubble = {}, 0.0
    if plan.sizes["pipeline"] > 1:
        phases["pipeline"], bubble = times.pipeline()
    else:
        pieces = plan.config.accumulation
        (stage,) = plan.stages
        phases["forward"] = pieces * times.forward(stage)
        phases["backward"] = pieces * times.backward(stage)
    hides = plan.config.allreduce.overlap != "none"
    exchange = times.exchange()
    hidden = min(exchange, phases.get("backward", 0.0)) * _HIDDEN if hides else 0.0
    phases["exchange"] = exchange - hidden
    phases["update"] = times.update()
    phases["other"] = machine.processor.step_seconds * times.sharing
    return StepSeconds({name: seconds for name, seconds in phases.items() if seconds}, bubble)


class _Times:
    def __init__(self, plan: StepPlan, machine: Machine) -> None:
        self._plan, self._machine = plan, machine
        self._processor: Processor = machine.processor
        self.sharing = machine.sharing(plan.num_ranks)

    def forward(self, stage: StageWork) -> float:
        return sum(self._pass(block.forward) for block in stage.blocks)

    def backward(self, stage: StageWork) -> float:
        own = sum(self._pass(block.backward) for block in stage.blocks)
        again = self.forward(stage) if self._plan.config.pipeline.recompute else 0.0
        return own + again

    def _pass(self, one: Pass) -> float:
        sent = sum(
            self._machine.collective(each, "operator", self._plan.sizes) for each in one.sent
        )
        return self.sharing * self._processor.seconds(one.operators) + sent

    def pipeline(self) -> tuple[float, float]:
        """Makespan and bubble. A step of an asynchronous schedule takes what one more adds."""
        plan = self._plan
        backward = [self.backward(stage) / 2 for stage in plan.stages]
        message = max(
            self._machine.message(plan.boundary_words(stage) * plan.word_bytes, plan.sizes)
            for stage in range(len(plan.stages) - 1)
        )
        costs = Costs(
            tuple(map(self.forward, plan.stages)), tuple(backward), tuple(backward), message
        )
        if plan.schedule.is_asynchronous:
            few, more = (dry_run(unrolled(plan.schedule, steps), costs) for steps in (2, 3))
            return more.makespan - few.makespan, 0.0
        timeline = dry_run(plan.schedule, costs)
        return timeline.makespan, timeline.bubble

    def exchange(self) -> float:
        plan = self._plan
        if plan.sizes["data"] == 1:
            return 0.0
        n = max(plan.num_parameters(rank) for rank in range(plan.sizes["pipeline"]))
        return self._machine.gradient_sum(n * plan.word_bytes, plan.sizes)

    def update(self) -> float:
        plan = self._plan
        n: float = max(plan.num_parameters(rank) for rank in range(plan.sizes["pipeline"]))
        if plan.config.data_parallel.name in ("zero1", "zero2"):
            n /= plan.sizes["data"]
        curve = self._processor.optimizers[plan.config.optimizer.name]
        return self.sharing * curve.at(n)
