"""One optimizer step on any number of ranks and micro-batches against softmax regression in numpy,
and what a step that is left out leaves behind.
"""

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.data_parallel.averagers import ParameterAverager
from dist_ml.data_parallel.flat_state import Rows
from dist_ml.errors import NonFiniteError
from dist_ml.measure.timer import Phases
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.schedule import Action, one_stage
from dist_ml.train.optimizer import LRSchedule
from dist_ml.train.step import Step, TrainStep
from dist_ml.train.updater import Updater
from tests.unit.train_worlds import Points, Steps, regression_step

ALONE = Communicator(Loopback())


@pytest.mark.parametrize(
    ("ranks", "microbatches"), [(1, 1), (1, 4), (3, 1), (3, 2), (5, 3)], ids=str
)
def test_steps_are_those_of_softmax_regression_however_the_batch_is_dealt(
    ranks: int, microbatches: int
) -> None:
    """Batches of 7 on up to 15 pieces, the last one of 2: some ranks have no sample at all."""
    points = Points(23)

    def body(comm: Communicator) -> tuple[list[Step], list[np.ndarray], list[np.ndarray]]:
        steps = Steps(comm, points, 7, microbatches)
        told, seen, rates = [], [steps.parameters.copy()], []
        for epoch in range(2):
            for index in range(steps.sampler.steps_per_epoch):
                rates.append(steps.updater.learning_rate)
                told.append(steps.train_step.run(epoch, index))
                seen.append(steps.parameters.copy())
        return told, seen, rates  # type: ignore[return-value]

    found = run_ranks(ranks, body)
    sampler = Steps(ALONE, points, 7).sampler
    told, seen, rates = found[0]
    parameters = seen[0]
    for number, step in enumerate(told):
        epoch, index = divmod(number, 4)
        ids = np.concatenate([sampler.share(epoch, index, rank, 9) for rank in range(9)])
        x, classes = points.inputs.numpy()[ids], points.targets.numpy()[ids]
        parameters, loss, correct = regression_step(parameters, x, classes, float(rates[number]))
        np.testing.assert_allclose(seen[number + 1], parameters, rtol=1e-12, atol=1e-14)
        assert (step.number, step.epoch, step.num_samples) == (number, epoch, [7, 7, 7, 2][index])
        assert step.loss == pytest.approx(loss, rel=1e-12)
        assert step.metrics == (correct,)
        assert not step.skipped
    assert len(rates) == len(set(rates)), "the learning rate has moved after every step"
    for other in found[1:]:
        assert other[0] == told
        assert all(map(np.array_equal, other[1], seen))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_skipped_step_changes_nothing_but_the_count_and_the_rate(ranks: int) -> None:

    def body(comm: Communicator) -> tuple[list[Step], list[np.ndarray], list[float]]:
        points = Points(8)
        steps = Steps(comm, points, 8, nonfinite="skip")
        told, seen, rates = [], [steps.parameters.copy()], [steps.updater.learning_rate]
        for epoch in range(3):
            points.inputs[3, 1] = math.nan if epoch == 0 else 0.5  # a sample of one rank
            told.append(steps.train_step.run(epoch, 0))
            seen.append(steps.parameters.copy())
            rates.append(steps.updater.learning_rate)
        return told, seen, rates

    points = Points(8)
    points.inputs[3, 1] = 0.5
    for told, seen, rates in run_ranks(ranks, body):
        assert [step.skipped for step in told] == [True, False, False]
        assert [step.number for step in told] == [0, 1, 2]
        assert math.isnan(told[0].loss)
        assert told[0].metrics == (0.0,)
        assert np.array_equal(seen[0], seen[1])
        expected, loss, _ = regression_step(
            seen[1], points.inputs.numpy(), points.targets.numpy(), rates[1]
        )
        np.testing.assert_allclose(seen[2], expected, rtol=1e-12)
        assert told[1].loss == pytest.approx(loss)
        assert rates[0] > rates[1] > rates[2]


def test_a_bad_step_stops_all_ranks_before_it_counts() -> None:
    points = Points(9)
    points.inputs[4, 0] = math.inf

    def body(comm: Communicator) -> tuple[str, bool, int, bool]:
        steps = Steps(comm, points, 9)
        before = steps.parameters.copy()
        with pytest.raises(NonFiniteError) as caught:
            steps.train_step.run(6, 0)
        return (
            str(caught.value),
            caught.value.agreed,
            steps.train_step.num_steps,
            np.array_equal(before, steps.parameters),
        )

    found = run_ranks(3, body)
    assert found == [found[0]] * 3
    assert "in epoch 6, step 0 on all ranks" in found[0][0]
    assert found[0][1:] == (True, 0, True)


def test_seconds_are_entered_by_phase() -> None:
    steps = Steps(ALONE, Points(6), 6, num_microbatches=2)
    steps.train_step.run(0, 0)
    taken = steps.phases.take()
    assert list(taken) == ["data", "forward", "backward", "exchange", "update"]
    assert all(seconds > 0 for seconds in taken.values())
    assert steps.phases.take() == {}


class Recorder:
    """Notes which method is called, in which order, with which arguments."""

    def __init__(self, log: list[Any], name: str, **returns: Any) -> None:
        self._log, self._name, self._returns = log, name, returns

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._log.append((f"{self._name}.{method}", *arguments, *named.values()))
            return self._returns.get(method)

        return call


@pytest.mark.parametrize("taken", [True, False])
def test_what_runs_in_a_step_and_in_which_order(taken: bool) -> None:
    log: list[Any] = []
    reduced = SimpleNamespace(slots=[0.25, 3.0, 0.0])
    step = TrainStep(
        executor=Recorder(log, "executor"),  # type: ignore[arg-type]
        stages=Recorder(log, "stages", begin=16),  # type: ignore[arg-type]
        reducer=Recorder(log, "reducer", finish=reduced),  # type: ignore[arg-type]
        guard=Recorder(log, "guard", factor=1.0 if taken else None),  # type: ignore[arg-type]
        updater=Recorder(log, "updater"),  # type: ignore[arg-type]
        phases=Phases(),
    )
    step.num_steps = 40
    assert step.run(2, 5) == Step(40, 2, 16, 0.25, (3.0,) if taken else (0.0,), not taken)
    assert log == [
        ("reducer.begin",),
        ("stages.begin", 40, 2, 5, None),
        ("executor.run", 0),
        ("stages.end",),
        ("reducer.finish",),
        ("guard.factor", reduced),
        ("updater.update", 0.25) if taken else ("guard.refuse", reduced, 2, 40),
        ("updater.advance",),
    ]
    assert step.num_steps == 41


@pytest.mark.parametrize(
    ("num", "pieces"), [(5, [[1, 1], [1, 1], [1]]), (2, [[1], [1], []])], ids=["5", "2"]
)
def test_gradients_are_final_from_the_last_backward_pass_on_also_without_samples(
    num: int, pieces: list[list[int]]
) -> None:
    """Few samples on three ranks in two pieces: some ranks have one piece, some none."""

    def body(comm: Communicator) -> list[str]:
        log: list[str] = []
        points = Points(num)
        steps = Steps(comm, points, num, num_microbatches=2)
        start, batch = steps.reducer.start, points.batch
        steps.reducer.start = lambda: (log.append("start"), start())[1]  # type: ignore[method-assign]
        points.batch = (  # type: ignore[method-assign]
            lambda ids: (log.append(f"{len(ids)} samples"), batch(ids))[1]
        )
        steps.train_step.run(0, 0)
        return log

    expected = [[*(f"{count} samples" for count in counts), "start"] for counts in pieces]
    assert run_ranks(3, body) == expected


class TestExecutor:
    def test_actions_run_in_their_order_by_their_kind(self) -> None:
        ran: list[str] = []
        executor = Executor(
            one_stage(2).actions[0],
            {"F": lambda a: ran.append(f"forward {a}"), "B": lambda a: ran.append(f"back {a}")},
        )
        for _ in range(2):
            executor.run()
        once = ["forward 0F0", "back 0B0", "forward 0F1", "back 0B1"]
        assert ran == once * 2

    def test_a_kind_without_a_method_is_found_before_anything_runs(self) -> None:
        with pytest.raises(AssertionError, match="'W'"):
            Executor([Action(0, "F", 0), Action(0, "W", 0)], {"F": lambda _: None})

    def test_an_error_ends_the_step_there(self) -> None:
        ran: list[Action] = []

        def fails(action: Action) -> None:
            raise RuntimeError(str(action))

        executor = Executor(one_stage(2).actions[0], {"F": ran.append, "B": fails})
        with pytest.raises(RuntimeError, match="0B0"):
            executor.run()
        assert ran == [Action(0, "F", 0)]


class Noting(ParameterAverager):
    """An averager that notes what it is told, and at which parameters."""

    def __init__(self, log: list[Any], parameter: torch.nn.Parameter) -> None:
        self._log, self._parameter, self.steps = log, parameter, 0
        self.rows = Rows(0, 1, "mean")

    def after_update(self, loss: float) -> None:
        self.steps += 1
        self._log.append(("averaged", loss, self._parameter.item()))

    def diagnostics(self) -> dict[str, float]:
        return {"period": 4.0}

    def close(self) -> None:
        self._log.append(("closed",))


class TestUpdater:
    def make(self) -> tuple[Updater, torch.nn.Parameter, list[Any]]:
        log: list[Any] = []
        parameter = torch.nn.Parameter(torch.tensor([1.0]))
        parameter.grad = torch.tensor([2.0])
        optimizer = torch.optim.SGD([parameter], lr=0.25, momentum=0.5)
        halving = LRSchedule(optimizer, lambda step: 0.5**step)
        gather = lambda: log.append(("gathered", parameter.item()))  # noqa: E731
        return Updater(optimizer, halving, gather, Noting(log, parameter)), parameter, log

    def test_parameters_are_made_whole_after_the_optimizers_step(self) -> None:
        updater, parameter, log = self.make()
        updater.update(0.75)
        assert parameter.item() == 0.5
        assert log == [("gathered", 0.5), ("averaged", 0.75, 0.5)]
        assert updater.learning_rate == 0.25
        updater.advance()
        assert updater.learning_rate == 0.125
        assert updater.diagnostics() == {"period": 4.0}
        updater.close()
        assert log[-1] == ("closed",)

    @pytest.mark.filterwarnings("error")
    def test_a_first_step_that_is_left_out_moves_the_rate_alone(self) -> None:
        updater, parameter, log = self.make()
        updater.advance()
        assert (updater.learning_rate, parameter.item(), log) == (0.125, 1.0, [])

    @pytest.mark.parametrize("is_last", [False, True])
    def test_a_step_is_taken_back_and_parameters_made_whole_once(self, is_last: bool) -> None:
        """By the update that follows, or at once where none does."""
        _, parameter, log = self.make()
        optimizer = torch.optim.SGD([parameter], lr=0.25)
        gather = lambda: log.append(parameter.item())  # noqa: E731
        updater = Updater(optimizer, LRSchedule(optimizer, lambda _: 1.0), gather)
        updater.update_early()
        updater.restore(is_last)
        assert parameter.item() == 1.0
        assert log == ([0.5, 1.0] if is_last else [0.5])
        updater.update(0.0)
        assert log[-1] == parameter.item() == 0.5

    def test_it_goes_on_from_its_state(self) -> None:
        one, first, _ = self.make()
        other, second, _ = self.make()
        for _ in range(3):
            one.update(1.0)
            one.advance()
        second.data.copy_(first.data)
        other.load_state_dict(copy.deepcopy(one.state_dict()), num_steps=3)
        for state, same in zip(one.tensors(), other.tensors(), strict=True):
            same.values.copy_(state.values)
        for updater in (one, other):
            updater.update(1.0)
            updater.advance()
        assert first.item() == second.item()
        assert one.learning_rate == other.learning_rate == 0.25 * 0.5**4
        assert other.state_dict()["averager"] == {"steps": 4}

    def test_without_gather_and_averager_there_is_nothing_to_do(self) -> None:
        _, parameter, _ = self.make()
        optimizer = torch.optim.SGD([parameter], lr=0.25)
        plain = Updater(optimizer, LRSchedule(optimizer, lambda _: 1.0))
        plain.update(1.0)
        plain.close()
        assert parameter.item() == 0.5
        assert plain.diagnostics() == {}
        assert plain.state_dict()["averager"] == {}
