"""Training and evaluating one model on the ranks of a mesh, step by step."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dist_ml.comm.mesh import Mesh
from dist_ml.data_parallel.flat_state import FlatState, state_of
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.datasets.dataset import Dataset, Split
from dist_ml.measure.timer import Phases
from dist_ml.models import BlockModel, Objective
from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.train.evaluator import Evaluation, Evaluator, no_border
from dist_ml.train.model_weights import gather_state
from dist_ml.train.pipeline import Pipeline
from dist_ml.train.pipeline_evaluator import PipelineEvaluator
from dist_ml.train.step import Step, TrainStep
from dist_ml.train.updater import Updater


class Trainer:
    """The parts of a training run, and the passes over the data that are made of them."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        model: BlockModel,
        parameters: dict[str, torch.nn.Parameter],
        objective: Objective,
        dataset: Dataset,
        sampler: GlobalSampler,
        train_step: TrainStep,
        reducer: GradientReducer,
        updater: Updater,
        evaluator: Evaluator | PipelineEvaluator,
        phases: Phases,
        pipeline: Pipeline | None = None,
        untrained: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.mesh = mesh
        self.model = model
        self.parameters = parameters  # this rank's, in the order of the flat vector
        # buffers and frozen parameters of this rank, the same on all replicas
        self.untrained = untrained or {}
        self.objective = objective
        self.dataset = dataset
        self.sampler = sampler
        self.reducer = reducer
        self.updater = updater
        self.phases = phases
        self.pipeline = pipeline
        self._train_step = train_step
        self._evaluator = evaluator

    def epoch(self, epoch: int, start: int = 0, goes_on: bool = False) -> Iterator[Step]:
        """The steps of one pass over the training samples, from the `start`-th on. Where steps run
        into each other, or with pipeline.validate=after, the next one has begun when one is
        yielded. `goes_on`: the next epoch follows at once, so that its first step may begin, too.
        """
        last = self.sampler.steps_per_epoch - 1
        for index in range(start, last + 1):
            after = (epoch, index + 1) if index < last else (epoch + 1, 0)
            yield self._train_step.run(epoch, index, after if index < last or goes_on else None)

    def next_steps(self, number: int) -> Iterator[Step]:
        """So many steps, from where the run is; as `epoch` yields them."""
        for left in reversed(range(number)):
            batch, after = self._batch(self.num_steps), self._batch(self.num_steps + 1)
            yield self._train_step.run(*batch, after if left else None)

    def _batch(self, number: int) -> tuple[int, int]:
        return divmod(number, self.sampler.steps_per_epoch)

    def step(self, epoch: int, index: int) -> Step:
        """One optimizer step on the `index`-th global batch of `epoch`, which leaves a pipe empty.
        Raises `NonFiniteError` on all ranks, or skips.
        """
        return self._train_step.run(epoch, index)

    def evaluate(
        self,
        split: Split,
        batch_size: int = 1024,
        at_border: Callable[[], None] = no_border,
    ) -> Evaluation:
        """Mean loss and accuracy over a split. Collective; `at_border`: before each batch."""
        self._train_step.drop_next()
        return self._evaluator.evaluate(split, batch_size, at_border)

    def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's outputs for inputs [b, ...] that all ranks have; on all ranks. Collective."""
        self._train_step.drop_next()
        return self._evaluator.outputs(inputs)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The whole model's state dict, on rank 0 of the mesh; None elsewhere. Collective."""
        self._train_step.drop_next()
        return gather_state(self.model, self.mesh)

    def timed_actions(self) -> list[list[TimedAction]]:
        """When each rank of this rank's pipeline computed what in the last step, in seconds from
        the first. Collective.
        """
        assert self.pipeline is not None
        comm = self.pipeline.comm
        comm.barrier()
        now = time.perf_counter()  # the same moment for all ranks, whatever their clocks say
        timed = self.own_timed_actions
        own = [(action, start - now, stop - now) for action, start, stop in timed]
        ranks = comm.allgather_objects(own)
        first = min((start for rank in ranks for _, start, _ in rank), default=0.0)
        return [
            [TimedAction(action, start - first, stop - first) for action, start, stop in rank]
            for rank in ranks
        ]

    @property
    def own_timed_actions(self) -> list[TimedAction]:
        """What this rank computed when in the last step of a pipeline, in seconds of
        `time.perf_counter`.
        """
        return self._train_step.stages.timed_actions

    def close(self) -> None:
        """Let no exchange be under way any more, end threads, and give back communicators and the
        memory that gradients lie in (not the mesh): for a run that is over, or ends before its last
        step. Parameters stay. Collective.
        """
        self._train_step.drop_next()
        self.updater.close()
        self.reducer.close()

    @property
    def num_steps(self) -> int:
        """Optimizer steps so far."""
        return self._train_step.num_steps

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.updater.learning_rate

    def diagnostics(self) -> dict[str, float]:
        """What the exchange has to say of the last step, for the metrics."""
        return {**self.reducer.diagnostics(), **self.updater.diagnostics()}

    def tensors(self) -> list[FlatState]:
        """All state that the next steps depend on and that has an element for each of the
        parameters', in place: with `state_dict` the only place that names it. Collective.
        """
        rows = self.updater.rows
        kind = "model/{}" if rows is None else "replicas/{}"
        parameters = state_of(kind, list(self.parameters.values()), rows)
        return [*parameters, *self.updater.tensors(), *self.reducer.tensors()]

    def state_dict(self) -> dict[str, Any]:
        """The rest of this rank's state, in numbers that JSON takes. Collective.

        The data needs none, nor the learning rate: they follow from the step number. A step that
        has begun is no part of the state; who goes on from it begins that one again.
        """
        return {
            "num_steps": self.num_steps,
            "reducer": self.reducer.state_dict(),
            "updater": self.updater.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], own: bool = True) -> None:
        """Go on from what `state_dict` returned on this rank, or (`own` false) on any rank of
        another mesh; `tensors` then has the places of the rest. Collective.
        """
        self._train_step.drop_next()
        self._train_step.num_steps = state["num_steps"]
        self.reducer.load_state_dict(state["reducer"], own)
        self.updater.load_state_dict(state["updater"], self.num_steps)
