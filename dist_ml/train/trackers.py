"""Where a run's metrics go: JSON lines always, TensorBoard and MLflow when asked for. Trackers live
on rank 0.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dist_ml.comm.agreement import from_root
from dist_ml.comm.communicator import Communicator
from dist_ml.config.train import TrackerConfig
from dist_ml.errors import ConfigError, MachineError
from dist_ml.launch.extras import install_command
from dist_ml.train.metrics import JsonLines, flatten
from dist_ml.train.run_folder import RunFolder

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What takes a run's numbers."""

    def start(self, config: Mapping[str, Any]) -> None:
        """The run begins, with this resolved configuration."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step; steps don't decrease. A number may be infinite or NaN."""

    def close(self) -> None:
        """The run has ended, well or not."""


class TensorBoard:
    """Event files in the run folder's `tensorboard/`; a run that goes on hides the events of steps
    that it makes again.
    """

    def __init__(self, folder: RunFolder, _config: TrackerConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = first_step or None
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=purge)

    def start(self, config: Mapping[str, Any]) -> None:
        rows = [f"| {key} | {value} |" for key, value in flatten(config).items()]
        self._writer.add_text("config", "\n".join(["| key | value |", "|---|---|", *rows]))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in flatten(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of an MLflow experiment, in the run folder's `mlflow/` or wherever `tracker.mlflow_uri`
    points; a run that goes on stays the same one.
    """

    def __init__(self, folder: RunFolder, config: TrackerConfig, first_step: int) -> None:
        # MLflow reports its use to its makers unless told, and refuses a plain folder, which needs
        # no server and no database.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow

        uri = mlflow_uri(folder, config)
        try:
            self._client = mlflow.MlflowClient(uri)
            experiment = self._client.get_experiment_by_name(config.mlflow_experiment)
            identity = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(config.mlflow_experiment)
            )
            place = {"dist_ml.folder": str(folder.path)}
            wanted = f"tags.`dist_ml.folder` = '{folder.path}'"
            found = self._client.search_runs([identity], wanted) if first_step else []
            self._goes_on = bool(found)
            run = (
                found[0]
                if found
                else self._client.create_run(identity, run_name=folder.path.name, tags=place)
            )
            self._run = run.info.run_id
        except mlflow.MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"tracker.mlflow_uri={uri} can't be used ({reason}); give a server's URL or a "
                "folder"
            ) from error

    def start(self, config: Mapping[str, Any]) -> None:
        if self._goes_on:
            return  # what a run was begun with is fixed
        for key, value in flatten(config).items():
            self._client.log_param(self._run, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in flatten(values).items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def mlflow_uri(folder: RunFolder, config: TrackerConfig) -> str:
    """Where MLflow keeps the run: what is configured, else the run folder's `mlflow/`."""
    return config.mlflow_uri or (folder.path / "mlflow").as_uri()


# Each optional tracker: the module it needs, the extra that installs it, and what makes it.
TRACKERS: dict[str, tuple[str, str, Callable[[RunFolder, TrackerConfig, int], Tracker]]] = {
    "tensorboard": ("tensorboard", "tensorboard", TensorBoard),
    "mlflow": ("mlflow", "mlflow", MLflow),
}


class Trackers:
    """Several trackers as one; none at all on ranks other than 0.

    The first, which is the run's own record, must not fail. Another one that fails (a server that
    is away) is dropped, with a word in the log: no reason to lose a run.
    """

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def start(self, config: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.start(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, values))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for index, tracker in enumerate(list(self._trackers)):
            try:
                call(tracker)
            except Exception:
                if index == 0:
                    raise
                log.exception("%s is given up: it failed", type(tracker).__name__)
                self._trackers.remove(tracker)


def open_trackers(
    config: TrackerConfig, folder: RunFolder, comm: Communicator, first_step: int = 0
) -> Trackers:
    """JSON lines and what `config` asks for on rank 0, nothing elsewhere. `first_step`: of this
    process; an earlier one made those before. Collective.

    On all ranks: `MachineError`, naming the extra, where a tracker's package is missing;
    `ConfigError` where it can't be used.
    """
    wanted = [entry for name, entry in TRACKERS.items() if getattr(config, name)]
    from_root(comm, lambda: _check_installed(wanted))
    opened: list[Tracker] = []

    def open_all() -> None:
        opened.append(JsonLines(folder.metrics))
        opened.extend(make(folder, config, first_step) for _, _, make in wanted)

    from_root(comm, open_all)
    return Trackers(opened)


def _check_installed(
    wanted: list[tuple[str, str, Callable[[RunFolder, TrackerConfig, int], Tracker]]],
) -> None:
    for module, extra, _ in wanted:
        if importlib.util.find_spec(module) is None:
            raise MachineError(
                f"tracker.{extra}=true needs the package {module}, which is not installed; "
                f"run: {install_command(extra)}, or set tracker.{extra}=false"
            )
