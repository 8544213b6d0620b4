"""Runs on this machine, or on the hosts of an emulated network on it: one after the other."""

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from dist_ml.config.experiment import ExperimentConfig
from dist_ml.experiment.folder import Run
from dist_ml.experiment.training_job import TrainingJob, start
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.launch.job import Completed

_KEPT = 4000  # characters of what a job printed last


@dataclass(frozen=True)
class Outcome:
    """How a run's job ended."""

    run: Run
    status: int  # of the job; 0 where it ended well
    output: str = ""  # what it printed last
    problem: str = ""  # in words, where the job alone knows them


def run_locally(
    config: ExperimentConfig,
    runs: Sequence[Run],
    job_of: Callable[[Run], TrainingJob],
    tell: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Start each run and wait for its end, at most `time_limit_seconds`. Nothing is left behind,
    also when the caller stops half-way.
    """
    emulated = config.where == "emulated"
    with (
        EmulatedNetwork(config.network.hosts or 1, config.network.rate)
        if emulated
        else nullcontext() as network
    ):

        def start_here(job: TrainingJob) -> Completed:
            return start(
                job,
                mpi=config.mpi,
                time_limit_seconds=config.time_limit_seconds,
                capture=True,
                environment={"OMP_NUM_THREADS": str(config.threads)},
                network=network,
            )

        yield from one_by_one(config, runs, job_of, tell, start_here)


def one_by_one(
    config: ExperimentConfig,
    runs: Sequence[Run],
    job_of: Callable[[Run], TrainingJob],
    tell: Callable[[str], None],
    start: Callable[[TrainingJob], Completed],
) -> Generator[Outcome, None, None]:
    """Say which run it is, `start` its job, which waits for its end, and give its outcome."""
    for number, run in enumerate(runs, 1):
        job = job_of(run)
        ranks = f"{job.ranks} rank{'s' if job.ranks > 1 else ''}"
        tell(f"run {number} of {len(runs)} on {ranks}: {run.title}")
        yield _outcome(run, start(job), config.time_limit_seconds)


def _outcome(run: Run, done: Completed, limit_seconds: float) -> Outcome:
    output = f"{done.stdout}{done.stderr}{done.stacks}"[-_KEPT:]
    if done.timed_out:
        problem = f"its time_limit_seconds={limit_seconds:g} were up"
        return Outcome(run, done.returncode, output, problem)
    return Outcome(run, done.returncode, output)
