"""How long a planned step takes on a machine, phase by phase.

    data                batches, where there is no pipeline
    forward, backward   the operators, and the collectives of shared layers
    pipeline            in their place: the dry run of the schedule with these times
    exchange            gradients summed over the ranks that hold the same ones; overlapped: what
                        backward can't hide; and what a model's ranks agree on
    update              the optimizer's pass over what a rank updates
    other               of every step, whatever it computes

Ranks beyond a node's cores take turns: compute takes so many times as long; but while some wait for
others, as in a pipeline's bubble, these have their cores.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import unrolled
from dist_ml.plan.model_work import Pass
from dist_ml.plan.networked import Machine
from dist_ml.plan.stage_work import StageWork
from dist_ml.plan.step_plan import StepPlan

# Of an overlapped exchange, what a backward pass as long hides (benchmarks/dense.md).
_HIDDEN = 0.7
_UPDATED = 3  # numbers a parameter that an update goes through: it, its gradient, its moment
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
        phases["data"] = pieces * times.load
        phases |= {"forward": pieces * forward, "backward": pieces * backward}
    phases |= times.after(phases.get("backward", 0.0))
    return StepSeconds({name: seconds for name, seconds in phases.items() if seconds}, bubble)


class Spent(NamedTuple):
    """Seconds of computing, and of exchanges with other ranks."""

    computing: float
    sending: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":  # type: ignore[override]
        return Spent(self.computing + other.computing, self.sending + other.sending)

    def shared(self, ranks: float) -> float:
        """With so many ranks a core."""
        return ranks * self.computing + self.sending


class StageSeconds:
    """Seconds of stages on a machine; each is computed once, however many plans have it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._known: dict[tuple[int, int, int], tuple[StageWork, Spent, Spent]] = {}

    def of(self, stage: StageWork, plan: StepPlan) -> tuple[Spent, Spent]:
        """Forward and backward, of one micro-batch."""
        key = id(stage), plan.sizes["operator"], plan.num_ranks
        if key not in self._known:
            # weights, gradients, and what lies between the two passes
            through = 2 * plan.word_bytes * stage.num_parameters + stage.kept_bytes
            in_memory = self._machine.in_memory(through, plan.num_ranks)
            passes: dict[int, Spent] = {}  # repeated blocks have the same ones
            for block in stage.blocks:
                for one in (block.forward, block.backward):
                    if id(one) not in passes:
                        passes[id(one)] = self._pass(one, plan, in_memory)
            once = Spent(self._machine.processor.constants.pass_seconds)
            forward = sum((passes[id(block.forward)] for block in stage.blocks), once)
            backward = sum((passes[id(block.backward)] for block in stage.blocks), Spent(0.0))
            self._known[key] = stage, forward, backward
        return self._known[key][1:]

    def _pass(self, one: Pass, plan: StepPlan, in_memory: float) -> Spent:
        machine = self._machine
        sent = sum(machine.collective(each, "operator", plan.sizes) for each in one.sent)
        return Spent(machine.processor.seconds(one.operators, in_memory), sent)


class StepTimes:
    """The parts of one step. `stages`: forward and backward of each, with what is recomputed, all
    ranks at work; `load`: of a micro-batch's samples.
    """

    def __init__(self, plan: StepPlan, machine: Machine, known: StageSeconds) -> None:
        self.plan, self._machine = plan, machine
        again = plan.config.pipeline.recompute
        found = [known.of(stage, plan) for stage in plan.stages]
        self._spent = [
            (forward, backward + forward if again else backward) for forward, backward in found
        ]
        self._sharing = machine.sharing(plan.num_ranks)
        self.stages = [
            (forward.shared(self._sharing), backward.shared(self._sharing))
            for forward, backward in self._spent
        ]
        self._loaded = machine.processor.load(plan.config.data.name, plan.batch_bytes)
        self.load = self._sharing * self._loaded

    @cached_property
    def costs(self) -> Costs:
        """Of the pipeline's actions, of ranks that have their cores."""
        plan = self.plan
        message = max(
            self._machine.message(plan.boundary_words(stage) * plan.word_bytes, plan.sizes)
            for stage in range(len(plan.stages) - 1)
        )
        halves = tuple(backward.shared(1) / 2 for _, backward in self._spent)
        forward = [forward.shared(1) for forward, _ in self._spent]
        for end in {0, len(forward) - 1}:
            forward[end] += self._loaded
        return Costs(tuple(forward), halves, halves, message)

    def of_all_cores(self, num_microbatches: int) -> float:
        """What a pipeline's passes take where no core ever waits."""
        return num_microbatches * sum(map(sum, self.stages)) / self.plan.sizes["pipeline"]

    def pipeline(self) -> tuple[float, float]:
        """Makespan and bubble: at least what the cores have to do in all. A step of an asynchronous
        schedule takes what one more adds.
        """
        schedule = self.plan.schedule
        least = self.of_all_cores(schedule.num_microbatches)
        if schedule.is_asynchronous:
            few, more = (dry_run(unrolled(schedule, steps), self.costs) for steps in (2, 3))
            return max(least, more.makespan - few.makespan), 0.0
        timeline = dry_run(schedule, self.costs)
        return max(least, timeline.makespan), timeline.bubble

    def after(self, backward: float) -> dict[str, float]:
        """All that isn't a pass, beside backward passes that long."""
        exchange = self.exchange()
        hidden = min(exchange, backward) * _HIDDEN if self._overlaps else 0.0
        return {
            "exchange": exchange - hidden + self.agreement(),
            "update": self.update(),
            "other": self._machine.processor.constants.step_seconds * self._sharing,
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

    def agreement(self) -> float:
        """Of a model's ranks, on loss and norm."""
        sizes = self.plan.sizes
        if sizes["pipeline"] * sizes["operator"] == 1:
            return 0.0
        return self._machine.agreement(self.plan.model.slots * self.plan.word_bytes, sizes)

    def update(self) -> float:
        plan = self.plan
        n: float = plan.most_parameters
        if plan.config.data_parallel.name in ("zero1", "zero2"):
            n /= plan.sizes["data"]
        machine = self._machine
        in_memory = machine.in_memory(_UPDATED * plan.word_bytes * n, plan.num_ranks)
        name = plan.config.optimizer.name
        return self._sharing * machine.processor.update(name, n, in_memory)

    @property
    def _is_dense(self) -> bool:
        return self.plan.config.data_parallel.name == "dense"

    @property
    def _overlaps(self) -> bool:
        """`auto` overlaps between nodes alone."""
        wanted = self.plan.config.allreduce.overlap
        between = self._machine.sums_between_nodes(self.plan.sizes)
        return self._is_dense and (between if wanted == "auto" else wanted != "none")
