"""What a training step asks of this rank's stages of a pipeline."""

from collections.abc import Callable, Mapping

from dist_ml.pipeline_parallel.dry_run import TimedAction
from dist_ml.pipeline_parallel.schedule import Action, Kind
from dist_ml.pipeline_parallel.stage_runner import StageRunner
from dist_ml.train.step_batches import StepBatches


class PipelineStages:
    """What `TrainStep` asks of a stage, of this rank's stages of a pipeline."""

    def __init__(self, runner: StageRunner, batches: StepBatches) -> None:
        self._runner = runner
        self._batches = batches

    @property
    def methods(self) -> Mapping[Kind, Callable[[Action], None]]:
        return self._runner.methods

    def begin(self, number: int, epoch: int, index: int) -> int:
        """The next actions are of optimizer step `number`, batch `index` of `epoch`; the number of
        samples in it, over all ranks.
        """
        batch_size, sizes = self._batches.begin(number, epoch, index)
        self._runner.begin(sizes)
        return batch_size

    def end(self) -> None:
        self._runner.end()

    @property
    def timed_actions(self) -> list[TimedAction]:
        """When this rank computed which action of the last step."""
        return self._runner.timed_actions
