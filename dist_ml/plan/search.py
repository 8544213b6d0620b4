"""Which way to spread a training step over its ranks takes least time: exact over all candidates,
without costing most of them.

Best first: every candidate enters with a bound below its seconds, and the one with the least bound
is costed next, until the ten best that were costed take no longer than any bound left. Costing is
planning, so that `dist-ml plan` says the same seconds of each of them.

    bound of a spread          least makespan of its stages (or their passes), and a step's constant
    bound of a candidate       and the exchange and update, exactly
    cost                       its plan
"""

import dataclasses
import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.pipeline_parallel.schedule import Schedule, one_stage
from dist_ml.pipeline_parallel.schedules.family import unproved
from dist_ml.pipeline_parallel.stages import cut_evenly
from dist_ml.plan.candidates import Candidates, Exchange, Spread, overrides
from dist_ml.plan.least_makespan import least_makespan
from dist_ml.plan.networked import Machine
from dist_ml.plan.prediction import require_known_seconds
from dist_ml.plan.step_memory import least_bytes, most_bytes
from dist_ml.plan.step_plan import Planner, StepPlan
from dist_ml.plan.step_seconds import StageSeconds, StepSeconds, StepTimes, step_seconds
from dist_ml.train.operator_axis import check_operator_axis
from dist_ml.train.pipeline_checks import check_axes

_ROUNDING = 1 - 1e-9  # a bound is a sum in another order


class Choice(NamedTuple):
    """One candidate that was costed. `memory`: of the rank that holds most, by what it is for."""

    config: TrainConfig
    plan: StepPlan
    seconds: StepSeconds
    memory: dict[str, int]

    def to_mapping(self, base: TrainConfig) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "overrides": overrides(self.config, base),
            "mesh": self.plan.sizes,
            "schedule": self.plan.schedule.name,
            "microbatches": self.plan.schedule.num_microbatches,
            "seconds": self.seconds.total,
            "seconds_by_phase": self.seconds.phases,
            "bubble": self.seconds.bubble,
            "memory_bytes": self.memory,
        }


@dataclass
class Found:
    """The best first, of equals the smallest. Of `candidates`, `costed` were planned; `refused` and
    `too_large` are those that the run's own checks, or its memory, ruled out when it was their
    turn; the others' bounds are above the seconds of the last of `best`.
    """

    best: list[Choice] = field(default_factory=list)
    candidates: int = 0
    costed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    too_large: int = 0
    smallest_bytes: int | None = None  # of those that are too large
    smallest: TrainConfig | None = None


class _Entry(NamedTuple):
    """What is to be looked at next: a spread, or (with `config`) a candidate."""

    bound: float
    order: int
    spread: Spread
    exchange: Exchange | None = None


def search(candidates: Candidates, machine: Machine, room_bytes: int, num_best: int = 10) -> Found:
    """`room_bytes`: of a rank. `ConfigError` for what no candidate can have."""
    require_known_seconds(candidates.config)
    if candidates.config.reproduce.shards is not None:
        raise ConfigError(
            "reproduce.shards cuts the batch itself, so that there is little to search; use "
            "reproduce=none"
        )
    return _Search(candidates, machine, room_bytes, num_best).run()


class _Search:
    def __init__(
        self, candidates: Candidates, machine: Machine, room_bytes: int, num_best: int
    ) -> None:
        self._candidates, self._machine = candidates, machine
        self._room, self._num_best = room_bytes - machine.processor.base_bytes, num_best
        self._planner = Planner(unproved)
        self._stages = StageSeconds(machine)
        self._kinds: dict[tuple[str, int], Schedule | DistMLError] = {}
        self._order = count()
        self._found = Found()

    def run(self) -> Found:
        found = self._found
        queue: list[_Entry] = []
        for spread in self._candidates.spreads():
            found.candidates += len(self._exchanges(spread))
            bound = self._bound(spread)
            if bound is not None:
                queue.append(_Entry(bound, next(self._order), spread))
        heapq.heapify(queue)
        while queue and not self._is_settled(queue[0].bound):
            entry = heapq.heappop(queue)
            if entry.exchange is None:
                for each in self._expanded(entry.spread):
                    heapq.heappush(queue, each)
            else:
                self._cost(entry.spread, entry.exchange)
        return found

    def _is_settled(self, bound: float) -> bool:
        best = self._found.best
        return len(best) == self._num_best and best[-1].seconds.total <= bound

    def _exchanges(self, spread: Spread) -> list[Exchange]:
        between = self._machine.sums_between_nodes(_sizes(spread))
        return self._candidates.exchanges(spread, between)

    def _bound(self, spread: Spread) -> float | None:
        """Below the seconds of any exchange; None where the run refuses the spread."""
        try:
            plan = self._sketch(spread, Exchange.of(self._candidates.config))
        except DistMLError as error:
            self._refuse(error, len(self._exchanges(spread)))
            return None
        times = StepTimes(plan, self._machine, self._stages)
        return self._passes(spread, times) * _ROUNDING

    def _passes(self, spread: Spread, times: StepTimes) -> float:
        """Seconds of batches, forward and backward passes, at least."""
        if spread.pipeline == 1:
            return spread.microbatches * (times.load + sum(times.stages[0]))
        with_cores = least_makespan(times.plan.schedule, spread.microbatches, times.costs)
        return max(with_cores, times.of_all_cores(spread.microbatches))

    def _sketch(self, spread: Spread, exchange: Exchange) -> StepPlan:
        """The plan with a schedule of the right kind, but of few micro-batches."""
        known = self._kinds.get((str(spread.schedule), spread.pipeline))
        if isinstance(known, DistMLError):
            raise known
        config = exchange.configured(spread.configured(self._candidates.config))
        sizes = _sizes(spread)
        check_axes(config, sizes)
        check_operator_axis(config, sizes)
        kind = one_stage(1) if spread.schedule is None else self._kind(spread, config)
        return self._planner.unchecked(config, sizes, kind)

    def _kind(self, spread: Spread, config: TrainConfig) -> Schedule:
        key = str(spread.schedule), spread.pipeline
        if key not in self._kinds:
            try:
                self._kinds[key] = self._made(spread, config)
            except DistMLError as error:
                self._kinds[key] = error
        found = self._kinds[key]
        if isinstance(found, DistMLError):
            raise found
        return found

    def _made(self, spread: Spread, config: TrainConfig) -> Schedule:
        few = dataclasses.replace(config.pipeline, microbatches=2 * spread.pipeline)
        num_blocks = self._planner.num_blocks(config)
        if spread.pipeline > num_blocks:
            cut_evenly([1.0] * num_blocks, spread.pipeline)  # says why not
        return self._planner.schedule(dataclasses.replace(config, pipeline=few), _sizes(spread))

    def _expanded(self, spread: Spread) -> list[_Entry]:
        """The spread with each exchange; without those that don't fit into memory anyhow."""
        entries = []
        for exchange in self._exchanges(spread):
            try:
                plan = self._sketch(spread, exchange)
            except DistMLError as error:
                self._refuse(error)
                continue
            held = least_bytes(plan)
            if held > self._room:
                self._leave_out(held, plan.config)
                continue
            times = StepTimes(plan, self._machine, self._stages)
            passes = self._passes(spread, times)
            backward = spread.microbatches * times.stages[0][1] if spread.pipeline == 1 else 0.0
            bound = (passes + sum(times.after(backward).values())) * _ROUNDING
            entries.append(_Entry(bound, next(self._order), spread, exchange))
        return entries

    def _cost(self, spread: Spread, exchange: Exchange) -> None:
        """Plan one candidate, and keep it where it is among the best."""
        found, config = self._found, self._candidates.config
        config = exchange.configured(spread.configured(config))
        try:
            plan = self._planner.plan(config, self._candidates.num_ranks)
        except DistMLError as error:
            self._refuse(error)
            return
        memory = most_bytes(plan)
        held = sum(memory.values())
        if held > self._room:
            self._leave_out(held, config)
            return
        found.costed += 1
        seconds = step_seconds(plan, self._machine, self._stages)
        memory = {"program": self._machine.processor.base_bytes, **memory}
        found.best.append(Choice(config, plan, seconds, memory))
        found.best.sort(key=lambda choice: (choice.seconds.total, sum(choice.memory.values())))
        del found.best[self._num_best :]

    def _refuse(self, error: DistMLError, times: int = 1) -> None:
        self._found.refused[str(error)] += times

    def _leave_out(self, held: int, config: TrainConfig) -> None:
        found = self._found
        found.too_large += 1
        if found.smallest_bytes is None or held < found.smallest_bytes:
            found.smallest_bytes, found.smallest = held, config


def _sizes(spread: Spread) -> dict[str, int]:
    return {"data": spread.data, "pipeline": spread.pipeline, "operator": spread.operator}
