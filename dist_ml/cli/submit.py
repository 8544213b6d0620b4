"""`dist-ml submit`: a training run, or a sweep as a job array, sent to Slurm; composed and checked
before anything is submitted.
"""

import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dist_ml.cli import arguments, configured, sweep_points, terminal
from dist_ml.cli.arguments import Request
from dist_ml.cli.composed_point import composed_point, refuse_ranks
from dist_ml.cli.submit_flags import FLAGS, parser, site_of
from dist_ml.config.site import SiteConfig
from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.experiment.training_job import TrainingJob
from dist_ml.launch import sbatch
from dist_ml.launch.sbatch import BatchJob

PROGRAM = "dist-ml submit"
_USUAL = "train"
_LEAD = re.compile(r"--signal=B:USR1@(\d+)")  # seconds before the end at which a run is told


def main(argv: Sequence[str]) -> int:
    """Submit the job of a configuration, or print the command that does."""
    flags, rest = parser(PROGRAM).parse_known_args(list(argv))
    request = _named(arguments.parse(rest, PROGRAM, config_name=""))
    if request.help or request.show:
        return configured.show(request, TrainConfig, f"{PROGRAM} [CONFIG]", FLAGS)
    if flags.task is not None:
        terminal.say(shlex.join(task_command(request, flags.task, os.environ)))
        return 0
    refuse_ranks(PROGRAM)
    site = site_of(flags, os.environ)
    job = (_sweep if request.multirun else _run)(request, flags, site)
    variables = _variables(site)
    if flags.print:
        assigned = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        terminal.say(" ".join([*assigned, shlex.join(job.command)]))
    else:
        number = sbatch.submit(job, variables)
        terminal.say(f"job {number}: {shlex.join(job.command)}")
    return 0


def task_command(request: Request, index: int, environment: Mapping[str, str]) -> list[str]:
    """What task `index` of a sweep's job array runs in its allocation: slurm/train.sbatch with the
    point's overrides and its folder, on the ranks that it has.
    """
    job = environment.get("SLURM_ARRAY_JOB_ID", "")
    point = sweep_points.point(request, index, f"slurm-{job}")
    most = int(environment.get("SLURM_NTASKS", "1"))
    ranks = point.config.num_ranks or most
    if ranks > most:
        raise ConfigError(
            f"point {point.number} of the sweep has {ranks} ranks, but the job {most}; submit it "
            f"with --ntasks={ranks}"
        )
    train = ["bash", str(sbatch.script("train.sbatch")), request.config_name]
    return ["env", f"SLURM_NTASKS={ranks}", *train, *point.job(request).arguments]


def _variables(site: SiteConfig) -> dict[str, str]:
    """What the script reads."""
    variables = {"DIST_ML_PYTHON": site.python or sys.executable}
    variables |= {"DIST_ML_MPI": site.mpi} if site.mpi else {}
    leads = [found[1] for option in site.options if (found := _LEAD.fullmatch(option))]
    return variables | ({"DIST_ML_LEAD_SECONDS": leads[-1]} if leads else {})


def _named(request: Request) -> Request:
    """The request with the configuration that its first word names, where that is no override."""
    first = request.overrides[0] if request.overrides else ""
    if not first or "=" in first or first.startswith("~"):
        return replace(request, config_name=request.config_name or _USUAL)
    if request.config_name:
        raise ConfigError(
            f"{first} and --config-name={request.config_name} both name the configuration; leave "
            "one of them out"
        )
    return replace(request, overrides=request.overrides[1:], config_name=first)


def _run(request: Request, flags: Namespace, site: SiteConfig) -> BatchJob:
    """One run."""
    config = composed_point(request, request.overrides)
    ranks = _ranks(config, flags, site)
    job = TrainingJob(
        request.config_name, request.config_dir, request.overrides, None, ranks, request.debug
    )
    return _batch_job("train.sbatch", job, config.name, flags, site)


def _sweep(request: Request, flags: Namespace, site: SiteConfig) -> BatchJob:
    """A task for each point, with the ranks of the largest."""
    points = sweep_points.plan(request)
    ranks = 1
    for point in points:
        try:
            ranks = max(ranks, _ranks(point.config, flags, site, fewer=True))
        except DistMLError as error:
            raise ConfigError(
                f"point {point.number} of the sweep ({' '.join(point.overrides)}): {error}"
            ) from error
    overrides = sweep_points.without_folder(request.overrides)
    root = points[0].folder.parent
    job = TrainingJob(
        request.config_name, request.config_dir, overrides, root, ranks, request.debug
    )
    at_once = f"%{site.jobs_at_once}" if site.jobs_at_once else ""
    array = f"0-{len(points) - 1}{at_once}"
    return _batch_job("sweep.sbatch", job, points[0].config.name, flags, site, array)


def _ranks(config: TrainConfig, flags: Namespace, site: SiteConfig, fewer: bool = False) -> int:
    """The ranks of a run, checked; it may have `fewer` than the flags ask for."""
    from dist_ml.experiment.points import check_training

    each = site.ntasks_per_node
    asked = flags.ntasks or (flags.nodes * each if flags.nodes and each else None)
    ranks = config.num_ranks or asked
    if ranks is None:
        raise ConfigError(
            "how many ranks? Neither ranks nor the mesh says it; give ranks=<number>, or "
            "--ntasks=<number>, or --nodes and --ntasks-per-node"
        )
    if flags.ntasks and (ranks > flags.ntasks if fewer else ranks != flags.ntasks):
        raise ConfigError(
            f"--ntasks={flags.ntasks} asks for other ranks than the configuration, which has "
            f"{ranks}; leave one of them out"
        )
    check_training(config, ranks)
    return ranks


def _batch_job(
    script: str,
    job: TrainingJob,
    name: str,
    flags: Namespace,
    site: SiteConfig,
    array: str | None = None,
) -> BatchJob:
    placed = {"partition": site.partition, "account": site.account}
    options = [f"--{key}={value}" for key, value in placed.items() if value is not None]
    return BatchJob(
        script=script,
        arguments=(job.config_name, *job.arguments),
        name=flags.job_name or name,
        ranks=job.ranks,
        nodes=flags.nodes,
        ranks_per_node=site.ntasks_per_node,
        threads=site.cpus_per_task,
        time=site.time,
        array=array,
        options=(*options, *site.options),
    )
