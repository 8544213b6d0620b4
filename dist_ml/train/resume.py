"""Going on with a run that another process began: from which checkpoint, and whether its settings
are still the same.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import set_aside
from dist_ml.checkpoint.reader import Checkpoint, newest
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.config.convert import show, to_mapping
from dist_ml.config.train import AUTO, TrainConfig
from dist_ml.errors import ConfigError, DataError
from dist_ml.pipeline_parallel.schedules.family import SCHEDULES
from dist_ml.train import stored_run
from dist_ml.train.checkpoints import is_imported
from dist_ml.train.interval import StepTotals
from dist_ml.train.metrics import flatten
from dist_ml.train.progress import Progress
from dist_ml.train.run_folder import RunFolder, load_config

# Keys that change no result beyond rounding: what is written and shown, and how the work is shared.
_SAME_RESULT = (
    "name", "folder", "ranks", "resume", "resume_force", "log_every", "evaluate_every",
    "accumulation", "kernel", "data.path", "data_parallel.name", "allreduce.name",
    "allreduce.overlap", "allreduce.bucket_bytes", "pipeline.microbatches",
)  # fmt: skip
_SAME_RESULT_GROUPS = (
    "checkpoint",
    "comm",
    "tracker",
    "mesh",
    "pipeline",
    "operator_parallel",
    "fault",
    "trace",
)


class Earlier(NamedTuple):
    """What is there of a run: the checkpoint to go on from, None where it is to begin again; its
    summary, where it has finished; and the settings that are others now, in words. `begun` is false
    where a checkpoint lies in a folder that no run has been in: imported weights, or another run's.
    """

    checkpoint: Checkpoint | None
    summary: dict[str, Any] | None = None
    differences: Sequence[str] = ()
    begun: bool = True


def find(config: TrainConfig, mesh: Mesh) -> Earlier | None:
    """The run to go on with; None where `resume=auto` finds none, which begins one. Collective.

    Raised by all ranks: `DataError` where there is no run, or none that can be read; `ConfigError`
    for settings that change its results, unless `resume_force`. Of a run that has finished no
    checkpoint is read, unless it is to go on.
    """
    world, folder = mesh.world, RunFolder(Path(config.place).absolute())
    summary = from_root(world, lambda: _summary(folder, config.resume == AUTO))
    finished = summary is not None and summary.get("status") == "finished"
    if finished:
        before = from_root(world, lambda: load_config(folder.path))
        if not _changed(folder.path, before, config).results:
            return Earlier(None, summary)
    checkpoint = newest(folder.checkpoints, world)
    if checkpoint is None or is_imported(checkpoint):
        if finished:
            raise _refusal(
                f"{folder.path} has finished, and saved nothing to go on from; choose another "
                "folder"
            )
        begun = summary is not None
        return Earlier(checkpoint, begun=begun) if begun or checkpoint is not None else None
    with raise_on_all_ranks(world):
        _require_run(checkpoint)
    words = [*_changed(checkpoint.path, checkpoint.header["config"], config).all]
    if (sizes := checkpoint.header["mesh"]) != mesh.sizes:
        words.append(f"mesh: {_product(sizes)} -> {_product(mesh.sizes)}")
    return Earlier(checkpoint, None, words, begun=summary is not None)


def require_epochs_left(config: TrainConfig, checkpoint: Checkpoint, steps_per_epoch: int) -> None:
    """`ConfigError` on all ranks where a run is to have fewer steps than the checkpoint has behind
    it: there would be nothing to train, and its results would be a longer run's.
    """
    if checkpoint.step > config.epochs * steps_per_epoch:
        raise _refusal(
            f"epochs={config.epochs} ends after step {config.epochs * steps_per_epoch}, but "
            f"{checkpoint.path} has {checkpoint.step} steps behind it; ask for "
            f"{-(-checkpoint.step // steps_per_epoch)} epochs or more, or choose another folder"
        )


def begin(earlier: Earlier, folder: Path, num_steps: int, comm: Communicator) -> list[str]:
    """From where the run goes on, and what is not as it was, in words. Checkpoints that are damaged
    are moved away, so that none is met again when the run has come to their steps. Collective.
    """
    checkpoint = earlier.checkpoint
    damaged = () if checkpoint is None else checkpoint.passed_over
    imported = checkpoint is not None and is_imported(checkpoint)
    return [
        *from_root(comm, lambda: [_set_aside(*one) for one in damaged]),
        f"goes on from {'imported weights' if imported else f'step {num_steps}'} of {folder}",
        *(f"changed: {words}" for words in earlier.differences),
    ]


def _set_aside(path: Path, problem: str) -> str:
    try:
        aside = set_aside(Files(), path)
    except OSError as error:
        raise DataError(
            f"{path} is damaged ({problem}) and can't be moved aside: {error.strerror or error}; "
            "remove it"
        ) from error
    return f"{path.name} is damaged, so one before it is taken: {problem}; it is {aside} now"


class Changes(NamedTuple):
    """Settings that are others now, each in words; `results`: those that change the results."""

    all: list[str]
    results: list[str]


def _changed(path: Path, before: Mapping[str, Any], config: TrainConfig) -> Changes:
    """`ConfigError` where other settings change the results and nobody wants that."""
    now = json.loads(json.dumps(to_mapping(config)))
    different = differences(before, now)
    changing = [words for key, words in different.items() if not keeps_result(key, before, now)]
    if changing and not config.resume_force:
        raise _refusal(
            f"{path} was trained with other settings, which change its results: "
            f"{'; '.join(changing)} (before -> now); use the former, or resume_force=true"
        )
    return Changes(list(different.values()), changing)


def _refusal(words: str) -> ConfigError:
    """What all ranks find alike."""
    error = ConfigError(words)
    error.agreed = True
    return error


def _require_run(checkpoint: Checkpoint) -> None:
    if (part := _missing_part(checkpoint.header)) is not None:
        raise DataError(
            f"{checkpoint.path} is no checkpoint of a run: its header has no {part}; to begin with "
            "its weights alone, use dist-ml checkpoint export and import"
        )


def _missing_part(header: Mapping[str, Any]) -> str | None:
    """The first part that a run's header has and this one hasn't."""
    kinds = {"config": dict, "mesh": dict, "ranks": list, "progress": dict, "interval": dict}
    for name, kind in kinds.items():
        if not isinstance(header.get(name), kind):
            return name
    for name, record in (("progress", Progress), ("interval", StepTotals)):
        for field in dataclasses.fields(record):
            if field.name not in header[name]:
                return f"{name}.{field.name}"
    sizes = list(header["mesh"].values())
    if not all(isinstance(size, int) for size in sizes) or len(header["ranks"]) != math.prod(sizes):
        return "state of each rank"
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The keys of two configurations whose values differ, each in words."""
    old, new = flatten(before), flatten(now)
    return {
        key: f"{key}: {show(old.get(key))} -> {show(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def keeps_result(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Does a run come to the same, but for rounding, with the values that both configurations have
    of this key?
    """
    if key == "pipeline.name":
        return _is_asynchronous(before) == _is_asynchronous(now)
    return key in _SAME_RESULT or key.split(".")[0] in _SAME_RESULT_GROUPS


def _is_asynchronous(config: Mapping[str, Any]) -> bool:
    """Whether gradients are those of the weights a step ago."""
    member = SCHEDULES.get(config.get("pipeline", {}).get("name"))
    return member is not None and member.is_asynchronous


def _summary(folder: RunFolder, may_be_none: bool) -> dict[str, Any] | None:
    """What the run's summary.json holds, {} without one; None where there is no run."""
    if may_be_none and not folder.log.is_dir():
        return None
    if not may_be_none and not folder.config.exists():
        raise DataError(
            f"resume={folder.path} is no run to go on with (no config.yaml there); give the folder "
            "of a run, or resume=auto, which begins one where there is none"
        )
    return stored_run.read_summary(folder.summary)


def _product(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())
