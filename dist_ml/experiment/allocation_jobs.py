"""Runs inside the Slurm allocation that this process is in, one after the other: each as
slurm/train.sbatch runs it, on as many of the allocation's tasks as it has ranks.
"""

import os
import sys
import time
from collections.abc import Callable, Generator, Sequence

from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import MachineError
from dist_ml.experiment.folder import Run
from dist_ml.experiment.local_jobs import Outcome, one_by_one
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch import sbatch, stacks
from dist_ml.launch.job import Command, Completed, run_all
from dist_ml.launch.process import signals_wait

_STEPS_SECONDS = 30.0  # for steps to be gone after they are killed
_POLL_SECONDS = 0.2
# The time limit's clock and folder are this node's alone.
_LIMIT_VARIABLES = (stacks.TIME_LIMIT, stacks.DEADLINE, stacks.FOLDER)


def run_in_allocation(
    config: ExperimentConfig,
    runs: Sequence[Run],
    job_of: Callable[[Run], TrainingJob],
    tell: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Start each run and wait for its end, at most `time_limit_seconds`. No step of the allocation
    is left behind, also when the caller stops half-way.
    """

    def start(job: TrainingJob) -> Completed:
        try:
            (done,) = run_all(
                [_command(config, job)], time_limit_seconds=config.time_limit_seconds, capture=True
            )
        except BaseException:
            with signals_wait():
                _end_steps()
            raise
        if done.returncode:
            _end_steps()
        return done

    return one_by_one(config, runs, job_of, tell, start)


def _command(config: ExperimentConfig, job: TrainingJob) -> Command:
    """slurm/train.sbatch as a program."""
    without = [word for name in _LIMIT_VARIABLES for word in ("-u", name)]
    train = ["bash", str(sbatch.script("train.sbatch")), job.config_name, *job.arguments]
    own = {
        "SLURM_NTASKS": str(job.ranks),
        "SLURM_CPUS_PER_TASK": str(config.threads),
        "OMP_NUM_THREADS": str(config.threads),
        "DIST_ML_PYTHON": sys.executable,
        "DIST_ML_REQUEUE": "no",  # a run that is measured has one life
        **({"DIST_ML_MPI": config.mpi} if config.mpi else {}),
    }
    return Command(["env", *without, *train], {**os.environ, **own})


def _end_steps() -> None:
    """Kill what still runs in this allocation but its script, also on other nodes, where a dead
    srun's ranks would go on; `MachineError` where they don't end.
    """
    job = os.environ["SLURM_JOB_ID"]
    deadline = time.monotonic() + _STEPS_SECONDS
    while steps := _steps(job):
        if time.monotonic() > deadline:
            raise MachineError(f"steps {', '.join(steps)} of this allocation don't end; cancel it")
        sbatch.client("scancel", "--signal=KILL", *steps)
        time.sleep(_POLL_SECONDS)


def _steps(job: str) -> list[str]:
    """The numbered ones: not the batch script."""
    told = sbatch.client("squeue", "--steps", "--noheader", "--format=%i", f"--jobs={job}")
    return [step for step in told.split() if step.partition(".")[2].isdecimal()]
