"""The configuration of a training run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from dist_ml.config.allreduce import AllreduceConfig, DataParallelConfig
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.config.convert import show
from dist_ml.config.data import DataConfig
from dist_ml.config.fault import FaultConfig
from dist_ml.config.model import ModelConfig
from dist_ml.config.operator import OperatorConfig
from dist_ml.config.pipeline import PipelineConfig
from dist_ml.config.reproduce import ReproduceConfig
from dist_ml.config.sparse import SparseConfig
from dist_ml.config.trace import TraceConfig
from dist_ml.errors import ConfigError

AUTO = "auto"
_LONGEST_NAME = 255


@dataclass(frozen=True)
class MeshConfig:
    """Ranks along each axis; one may be null and takes the ranks that the others leave."""

    data: int | None  # replicas of the model, each with its share of the batch
    pipeline: int | None  # stages of the model
    operator: int | None  # shards of each layer


@dataclass(frozen=True)
class OptimizerConfig:
    """Which of torch's optimizers updates the parameters, and its own parameters."""

    name: str  # sgd, adamw
    lr: float  # learning rate at the end of the warm-up
    weight_decay: float  # decoupled for adamw, L2 for sgd
    momentum: float = 0.0  # sgd
    nesterov: bool = False  # sgd
    betas: tuple[float, ...] = (0.9, 0.999)  # adamw
    eps: float = 1e-8  # adamw

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr={self.lr} must be above 0 and finite")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight_decay={self.weight_decay} must be at least 0 and finite")
        if not 0 < self.eps < float("inf"):
            raise ConfigError(f"eps={self.eps} must be above 0 and finite; use 1e-8")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum} must be in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov=True needs momentum above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={list(self.betas)} must be two numbers in [0, 1)")


@dataclass(frozen=True)
class LRScheduleConfig:
    """How the learning rate changes over the steps of a run."""

    name: str  # constant, cosine
    warmup_fraction: float  # the rate rises linearly from 0 over this part of the run's steps
    final_fraction: float = 0.0  # cosine: what is left of the rate at the last step

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"warmup_fraction={self.warmup_fraction} must be in [0, 1)")
        if not 0 <= self.final_fraction <= 1:
            raise ConfigError(f"final_fraction={self.final_fraction} must be in [0, 1]")


@dataclass(frozen=True)
class CommConfig:
    """How ranks communicate."""

    # compare the ranks' calls before each collective: slow, finds mismatches instead of hanging
    checked: bool
    timing: bool  # take the seconds of every collective into the ledger


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics go beside metrics.jsonl, which is always written."""

    tensorboard: bool  # event files in the run folder's tensorboard/ (extra: tensorboard)
    mlflow: bool  # an MLflow run (extra: mlflow)
    mlflow_uri: str | None = None  # where MLflow keeps its runs; null: the run folder's mlflow/
    mlflow_experiment: str = "dist_ml"  # the MLflow experiment that the run belongs to


@dataclass(frozen=True)
class TrainConfig:
    """A training run: what `configs/train.yaml` composes."""

    name: str  # names the run's folder
    folder: str  # the run folder, made by rank 0
    seed: int  # of initial weights, sampling and dropout; synthetic data has its own, data.seed
    ranks: int | None  # the ranks that this run must have; null: as many as were started
    epochs: int  # passes over the training samples
    batch_size: int  # samples of one optimizer step, over all ranks
    # pieces that each rank's share of a batch is computed in, to bound its memory
    accumulation: int
    precision: Literal["fp32", "fp64", "bf16"]  # bf16: autocast, with fp32 parameters and gradients
    clip_norm: float | None  # the gradient's largest global norm; null: not clipped
    nonfinite: Literal["stop", "skip"]  # what to do at a loss or gradient that is NaN or infinite
    log_every: int  # steps between lines of metrics.jsonl
    evaluate_every: int  # epochs between evaluations; the last epoch is always followed by one
    mesh: MeshConfig
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    lr_schedule: LRScheduleConfig
    comm: CommConfig
    tracker: TrackerConfig
    sparse: SparseConfig = field(default_factory=SparseConfig)
    allreduce: AllreduceConfig = field(default_factory=AllreduceConfig)
    data_parallel: DataParallelConfig = field(default_factory=DataParallelConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    operator_parallel: OperatorConfig = field(default_factory=OperatorConfig)
    # of the linear layers' fp32 and fp64 products: torch, auto (the fastest here), or one of gemm's
    # KERNELS
    kernel: str = "torch"
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # go on with a run: its folder; auto: the run in `folder`, or begin it if there is none
    resume: str | None = None
    resume_force: bool = False  # also with settings that change its results
    reproduce: ReproduceConfig = field(default_factory=ReproduceConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)

    @property
    def place(self) -> str:
        """The run folder, new or old."""
        return self.folder if self.resume is None or self.resume == AUTO else self.resume

    @property
    def num_ranks(self) -> int | None:
        """The ranks that it says it has: `ranks`, or the mesh where all its axes are given; None
        where both leave it open.
        """
        sizes = (self.mesh.data, self.mesh.pipeline, self.mesh.operator)
        given = [size for size in sizes if size is not None]
        return self.ranks or (math.prod(given) if len(given) == len(sizes) else None)

    @property
    def saves(self) -> bool:
        """Is the run's state ever saved? Then signals are waited for, too."""
        return self.checkpoint.every > 0 or self.resume is not None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.ranks is not None and self.ranks < 1:
            raise ConfigError(
                f"ranks={self.ranks} must be at least 1, or null for as many as were started"
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must be at least 0")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm={self.clip_norm} must be above 0, or null not to clip")
        if self.allreduce.wire != "fp32" and self.precision == "fp64":
            raise ConfigError(
                f"allreduce.wire={self.allreduce.wire} would round fp64 gradients; use wire=fp32"
            )
        if self.sparse.values != "plain" and self.precision == "fp64":
            raise ConfigError(
                f"sparse.values={self.sparse.values} would round fp64 gradients; use plain"
            )
        if self.accumulation > self.batch_size:
            raise ConfigError(
                f"accumulation={self.accumulation} cuts a batch of batch_size={self.batch_size} "
                f"samples into pieces without any; set accumulation to {self.batch_size} or less"
            )
        if self.reproduce.shards is not None and self.reproduce.shards > self.batch_size:
            raise ConfigError(
                f"reproduce.shards={self.reproduce.shards} cuts a batch of batch_size="
                f"{self.batch_size} samples into pieces without any; set it to {self.batch_size} "
                "or less"
            )
        _check_path("name", self.name)
        _check_path("folder", self.folder)
        if self.resume is not None:
            _check_path("resume", self.resume)
        if self.sparse.allreduce != "none" and self.sparse.momentum and self.optimizer.momentum:
            raise ConfigError(
                f"optimizer.momentum={self.optimizer.momentum} and "
                f"sparse.momentum={self.sparse.momentum} would apply momentum "
                "twice; set optimizer.momentum=0: momentum correction accumulates it before "
                "anything is sent"
            )


def _check_path(key: str, value: str) -> None:
    """Runs are kept under names that file systems take and that stay where they belong."""
    parts = value.split("/")
    if not value.strip() or "\0" in value:
        raise ConfigError(f"{key}={show(value)} names no folder; set {key}=<text>")
    if key == "name" and (".." in parts or value.startswith("/")):
        raise ConfigError(
            f"name={value} leads out of the folder of runs; use letters, or folder=… for another "
            "place"
        )
    longest = max(parts, key=len)
    if len(longest.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"{key} has a part of {len(longest)} letters, {longest[:20]}…; file systems take "
            f"{_LONGEST_NAME} bytes"
        )
