"""What a finished run leaves beside figures: weights, a pipeline's last step, a sample of text."""

from typing import Any

from dist_ml.comm.agreement import from_root
from dist_ml.config.train import TrainConfig
from dist_ml.pipeline_parallel import timeline_file
from dist_ml.pipeline_parallel.timeline_file import MeasuredStep
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.text_sample import write_text
from dist_ml.train.trainer import Trainer
from dist_ml.train.weights import save_weights


def leave_results(trainer: Trainer, folder: RunFolder, config: TrainConfig) -> dict[str, Any]:
    """Write all of it, on rank 0; what the summary has of it. Collective."""
    state = trainer.weights() or {}
    from_root(trainer.mesh.world, lambda: save_weights(state, folder.model))
    return {**_timeline(trainer, folder), **_text_sample(trainer, folder, config.seed)}


def _timeline(trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """A pipeline's last step; its bubble, measured and planned. Of steps that run into each other
    one alone tells little; and a run that goes on from its last step has made none.
    """
    pipeline = trainer.pipeline
    if pipeline is None:
        return {}
    if pipeline.schedule.is_asynchronous:
        return {"schedule": pipeline.schedule.name}
    timed = trainer.timed_actions()
    if not any(timed):
        return {"schedule": pipeline.schedule.name}
    step = MeasuredStep.of(pipeline.schedule, timed)
    from_root(trainer.mesh.world, lambda: timeline_file.write(folder.timeline, step))
    return {
        "schedule": pipeline.schedule.name,
        "bubble": step.timeline.bubble,
        "planned_bubble": step.planned().bubble,
    }


def _text_sample(trainer: Trainer, folder: RunFolder, seed: int) -> dict[str, Any]:
    """What a model of text writes."""
    if not trainer.objective.bytewise:
        return {}
    text = write_text(trainer, seed)
    from_root(trainer.mesh.world, lambda: folder.write(folder.sample, text + "\n"))
    return {"text_sample": text}
