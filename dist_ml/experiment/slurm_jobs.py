"""Runs as jobs of Slurm: each is one sbatch of slurm/train.sbatch, waited for with limits.

A job's number is kept in its run folder before anything is waited for, so that an experiment that
was killed finds its jobs again instead of submitting them twice. Slurm forgets a job some minutes
after its end; what the run wrote then says how it ended.
"""

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import MachineError
from dist_ml.experiment.folder import Run
from dist_ml.experiment.local_jobs import Outcome
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch import sbatch
from dist_ml.launch.process import signals_wait
from dist_ml.launch.sbatch import BatchJob
from dist_ml.train.run_folder import write_whole

_GRACE_SECONDS = 60.0  # for a job to start its ranks, and to end at its limit
_WRITTEN_SECONDS = 10.0  # for a summary to be seen here: the file system is shared, and may be slow
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_GOING = {"RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED"}
_FORGOTTEN = "Invalid job id"
_KEPT = 4000  # characters of a job's output
_TIMED_OUT = 124


@dataclass
class _Job:
    """A submitted run."""

    run: Run
    number: str
    since: float  # when it was submitted, then when it was first seen to run; a monotonic clock's
    started: bool = False


def run_on_slurm(
    config: ExperimentConfig,
    runs: Sequence[Run],
    job_of: Callable[[Run], TrainingJob],
    tell: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Submit each run, at most `slurm.jobs_at_once` at a time, and wait for its end; jobs that
    still wait or run when the caller stops are cancelled.
    """
    left, jobs = list(runs), list[_Job]()
    try:
        while left or jobs:
            while left and len(jobs) < config.slurm.jobs_at_once:
                run = left.pop(0)
                jobs.append(_submitted(config, run, job_of))
                place = len(runs) - len(left)
                tell(f"run {place} of {len(runs)}, job {jobs[-1].number}: {run.title}")
            for job in list(jobs):
                outcome = _look(config, job)
                if outcome is not None:
                    jobs.remove(job)
                    yield outcome
            if jobs:
                time.sleep(config.slurm.poll_seconds)
    finally:
        with signals_wait():
            for job in jobs:
                _cancel(job)


def job_goes_on(run: Run) -> str | None:
    """The number of a job that an earlier experiment submitted for this run, if it still waits or
    runs.
    """
    try:
        number = (run.folder / "slurm_job").read_text().strip()
    except OSError:
        return None
    state, _ = _state(number)
    return number if state in _WAITING | _GOING else None


def batch_job(config: ExperimentConfig, run: Run, job: TrainingJob) -> BatchJob:
    """What is submitted for a run."""
    return BatchJob(
        script="train.sbatch",
        arguments=(job.config_name, *job.arguments),
        name=f"{config.name}-{run.point.number}.{run.repetition}",
        ranks=job.ranks,
        ranks_per_node=config.slurm.ranks_per_node,
        threads=config.threads,
        time=str(math.ceil((config.time_limit_seconds + _GRACE_SECONDS) / 60)),
        output=str(run.folder.absolute() / "slurm.out"),
        options=config.slurm.options,
    )


def _submitted(config: ExperimentConfig, run: Run, job_of: Callable[[Run], TrainingJob]) -> _Job:
    number = job_goes_on(run)
    if number is None:
        job = job_of(run)
        run.folder.mkdir(parents=True, exist_ok=True)
        own = {"DIST_ML_PYTHON": sys.executable, "OMP_NUM_THREADS": str(config.threads)}
        own |= {"DIST_ML_REQUEUE": "no"}  # a run that is measured has one life
        own |= {"DIST_ML_MPI": config.mpi} if config.mpi else {}
        number = sbatch.submit(batch_job(config, run, job), own)
        write_whole(run.folder / "slurm_job", f"{number}\n")
    return _Job(run, number, time.monotonic())


def _look(config: ExperimentConfig, job: _Job) -> Outcome | None:
    """How the job ended; None while it waits or runs within its limits."""
    state, status = _state(job.number)
    if state in _GOING and not job.started:
        job.started, job.since = True, time.monotonic()
    if state in _WAITING | _GOING | {""}:
        limit = config.time_limit_seconds + _GRACE_SECONDS
        if not job.started:
            limit = config.slurm.wait_seconds
        if time.monotonic() - job.since <= limit:
            return None
        _cancel(job)
        what = (
            f"its time_limit_seconds={config.time_limit_seconds:g} were up"
            if job.started
            else f"it did not start within slurm.wait_seconds={limit:g}"
        )
        return Outcome(job.run, _TIMED_OUT, _output(job), what)
    _wait_for_summary(job.run, status)
    last = "" if status == 0 else f"\njob {job.number} ended as {state}"
    return Outcome(job.run, status, _output(job) + last)


def _cancel(job: _Job) -> None:
    """End a job, which may have ended by itself meanwhile: then Slurm knows it no more."""
    with contextlib.suppress(MachineError):
        sbatch.client("scancel", job.number)


def _state(number: str) -> tuple[str, int]:
    """(state, exit status) of a job; ("", 0) when Slurm doesn't answer now, ("forgotten", 0) when
    it doesn't know the job any more.
    """
    try:
        told = sbatch.client("scontrol", "--oneliner", "show", "job", number)
    except MachineError as error:
        return ("forgotten" if _FORGOTTEN in str(error) else ""), 0
    state = re.search(r"\bJobState=(\w+)", told)
    code = re.search(r"\bExitCode=(\d+):(\d+)", told)
    if state is None:
        return "", 0
    status = (int(code[1]) or (128 + int(code[2]) if int(code[2]) else 0)) if code else 0
    good = state[1] in _WAITING | _GOING | {"COMPLETED"}
    return state[1], status if status or good else 1


def _wait_for_summary(run: Run, status: int) -> None:
    deadline = time.monotonic() + _WRITTEN_SECONDS
    while status == 0 and not run.is_finished() and time.monotonic() < deadline:
        time.sleep(0.2)


def _output(job: _Job) -> str:
    try:
        return (job.run.folder / "slurm.out").read_text(errors="replace")[-_KEPT:]
    except OSError:
        return ""
