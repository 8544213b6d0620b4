"""How long a planned step takes on a machine, phase by phase.

    forward, backward   the operators, and the collectives of shared layers
    pipeline            in their place: the dry run of the schedule with these times
    exchange            gradients summed over the ranks that hold the same ones; overlapped: what
                        backward can't hide
    update              the optimizer's pass over what a rank updates
    other               of every step, whatever it computes

Ranks beyond a node's cores take turns: compute takes so many times as long.
"""

from dataclasses import dataclass
from functools import cached_property

from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import unrolled
from dist_ml.plan.model_work import Pass
from dist_ml.plan.networked import Machine
from dist_ml.plan.stage_work import StageWork
from dist_ml.plan.step_plan import StepPlan

# Of an overlapped exchange, what a backward pass as long hides (benchmarks/dense.md).
_HIDDEN = 0.7
_WIRE_BYTES = {"bf16": 2, "fp16": 2}  # of a number between nodes


@dataclass(frozen=True)
class StepSeconds:
    """By phase; `bubble`: the idle share of the pipeline's ranks."""

    phases: dict[str, float]
    bubble: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.phases.values())


def step_seconds(
    plan: StepPlan, machine: Machine, stages: "StageSeconds | None" = None
) -> StepSeconds:
    """Of a step on the slowest rank. `stages`: what is known already."""
    times = StepTimes(plan, machine, stages or StageSeconds(machine))
    phases, bubble = {}, 0.0
    if plan.sizes["pipeline"] > 1:
        phases["pipeline"], bubble = times.pipeline()
    else:
        ((forward, backward),) = times.stages
        pieces = plan.schedule.num_microbatches
        phases |= {"forward": pieces * forward, "backward": pieces * backward}
    phases |= times.after(phases.get("backward", 0.0))
    return StepSeconds({name: seconds for name, seconds in phases.items() if seconds}, bubble)


class StageSeconds:
    """Seconds of stages on a machine; each is computed once, however many plans have it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._known: dict[tuple[int, int, int], tuple[StageWork, float, float]] = {}

    def of(self, stage: StageWork, plan: StepPlan) -> tuple[float, float]:
        """Forward and backward, of one micro-batch."""
        key = id(stage), plan.sizes["operator"], plan.num_ranks
        if key not in self._known:
            passes: dict[int, float] = {}  # repeated blocks have the same ones
            for block in stage.blocks:
                for one in (block.forward, block.backward):
                    if id(one) not in passes:
                        passes[id(one)] = self._pass(one, plan)
            forward = sum(passes[id(block.forward)] for block in stage.blocks)
            backward = sum(passes[id(block.backward)] for block in stage.blocks)
            self._known[key] = stage, forward, backward
        return self._known[key][1:]

    def _pass(self, one: Pass, plan: StepPlan) -> float:
        machine = self._machine
        sent = sum(machine.collective(each, "operator", plan.sizes) for each in one.sent)
        sharing = machine.sharing(plan.num_ranks)
        return sharing * machine.processor.seconds(one.operators) + sent


class StepTimes:
    """The parts of one step. `stages`: forward and backward of each, with what is recomputed."""

    def __init__(self, plan: StepPlan, machine: Machine, known: StageSeconds) -> None:
        self.plan, self._machine = plan, machine
        again = plan.config.pipeline.recompute
        found = [known.of(stage, plan) for stage in plan.stages]
        self.stages = [(forward, backward + again * forward) for forward, backward in found]
        self._sharing = machine.sharing(plan.num_ranks)

    @cached_property
    def costs(self) -> Costs:
        """Of the pipeline's actions."""
        plan = self.plan
        message = max(
            self._machine.message(plan.boundary_words(stage) * plan.word_bytes, plan.sizes)
            for stage in range(len(plan.stages) - 1)
        )
        halves = tuple(backward / 2 for _, backward in self.stages)
        return Costs(tuple(forward for forward, _ in self.stages), halves, halves, message)

    def pipeline(self) -> tuple[float, float]:
        """Makespan and bubble. A step of an asynchronous schedule takes what one more adds."""
        schedule = self.plan.schedule
        if schedule.is_asynchronous:
            few, more = (dry_run(unrolled(schedule, steps), self.costs) for steps in (2, 3))
            return more.makespan - few.makespan, 0.0
        timeline = dry_run(schedule, self.costs)
        return timeline.makespan, timeline.bubble

    def after(self, backward: float) -> dict[str, float]:
        """All that isn't a pass, beside backward passes that long."""
        exchange = self.exchange()
        hidden = min(exchange, backward) * _HIDDEN if self._overlaps else 0.0
        return {
            "exchange": exchange - hidden,
            "update": self.update(),
            "other": self._machine.processor.step_seconds * self._sharing,
        }

    def exchange(self) -> float:
        plan, machine = self.plan, self._machine
        copies = max(len(plan.schedule.holders(stage)) for stage in range(len(plan.stages)))
        if plan.sizes["data"] * copies == 1:
            return 0.0
        chosen = plan.config.allreduce
        word = plan.word_bytes
        if machine.sums_between_nodes(plan.sizes, copies):
            word = _WIRE_BYTES.get(chosen.wire, word)
        name = chosen.name if self._is_dense else "native"
        return machine.gradient_sum(plan.most_parameters * word, plan.sizes, name, copies)

    def update(self) -> float:
        plan = self.plan
        n: float = plan.most_parameters
        if plan.config.data_parallel.name in ("zero1", "zero2"):
            n /= plan.sizes["data"]
        curve = self._machine.processor.optimizers[plan.config.optimizer.name]
        return self._sharing * curve.at(n)

    @property
    def _is_dense(self) -> bool:
        return self.plan.config.data_parallel.name == "dense"

    @property
    def _overlaps(self) -> bool:
        """`auto` overlaps between nodes alone."""
        wanted = self.plan.config.allreduce.overlap
        between = self._machine.sums_between_nodes(self.plan.sizes)
        return self._is_dense and (between if wanted == "auto" else wanted != "none")
