"""What sbatch is told, for every job that is submitted here, and Slurm's programs, asked with a
limit.
"""

import math
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import dist_ml
from dist_ml.errors import ConfigError, MachineError

_CLIENT_SECONDS = 60.0  # for Slurm to answer


@dataclass(frozen=True)
class BatchJob:
    """A script of slurm/ with its arguments, and the allocation that it asks for. `ConfigError` for
    one that its ranks don't fit into.
    """

    script: str  # train.sbatch, …
    arguments: tuple[str, ...]  # of the script
    name: str
    ranks: int
    nodes: int | None = None  # None: as `ranks_per_node` has it, else Slurm places the ranks
    ranks_per_node: int | None = None  # at most; None: spread evenly over `nodes`
    threads: int | None = None  # of each rank
    time: str | None = None  # as sbatch reads it: minutes, hours:minutes:seconds, …
    output: str | None = None  # None: as the script has it
    array: str | None = None
    options: tuple[str, ...] = ()  # more of sbatch's

    def __post_init__(self) -> None:
        nodes, ranks_per_node = self.nodes, self.ranks_per_node
        if nodes is not None and nodes > self.ranks:
            raise ConfigError(
                f"{nodes} nodes are more than the ranks, {self.ranks}; ask for {self.ranks} or "
                "fewer nodes"
            )
        if nodes and ranks_per_node and nodes * ranks_per_node < self.ranks:
            raise ConfigError(
                f"{nodes} nodes of {ranks_per_node} ranks hold {nodes * ranks_per_node}, but the "
                f"job has {self.ranks}; ask for more nodes, or more ranks on each"
            )

    @property
    def num_nodes(self) -> int | None:
        """How many it asks for; None where Slurm chooses."""
        if self.nodes is None and self.ranks_per_node is not None:
            return math.ceil(self.ranks / self.ranks_per_node)
        return self.nodes

    @property
    def command(self) -> list[str]:
        """The command line that submits it."""
        nodes = self.num_nodes
        a_node = self.ranks_per_node or (math.ceil(self.ranks / nodes) if nodes else None)
        asked = {
            "job-name": self.name,
            "output": self.output,
            "array": self.array,
            "nodes": nodes,
            "ntasks-per-node": a_node if nodes and nodes > 1 else None,
            "ntasks": self.ranks,
            "cpus-per-task": self.threads,
            "time": self.time,
        }
        return [
            "sbatch",
            *(f"--{name}={value}" for name, value in asked.items() if value is not None),
            *self.options,
            str(script(self.script)),
            *self.arguments,
        ]


def submit(job: BatchJob, environment: Mapping[str, str]) -> str:
    """Submit it, with these variables beside those of this process: the job's number."""
    sbatch, *arguments = job.command
    told = client(sbatch, "--parsable", *arguments, environment=environment)
    return told.strip().splitlines()[-1].partition(";")[0]


def script(name: str) -> Path:
    """A file of slurm/: beside the package in a checkout, inside it in a wheel."""
    package = Path(dist_ml.__file__).parent
    for folder in (package / "slurm", package.parent / "slurm"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"no slurm/{name} in or beside {package}; reinstall the package")


def allocated_ranks() -> int:
    """The tasks of this allocation. `MachineError` outside of one."""
    if not os.environ.get("SLURM_JOB_ID"):
        raise MachineError(
            "where=allocation runs inside a job of Slurm; submit slurm/experiment.sbatch, or take "
            "an allocation with salloc"
        )
    return int(os.environ.get("SLURM_NTASKS", "1"))


def client(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a program of Slurm prints; `MachineError` with its words when it fails."""
    try:
        told = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CLIENT_SECONDS,
            start_new_session=True,  # a Ctrl-C at the terminal is for this program alone
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(
            f"{command[0]} could not be run ({error}); submitting needs Slurm's programs here, on "
            "a login node"
        ) from error
    if told.returncode:
        raise MachineError(
            f"{command[0]} failed: {told.stderr.strip() or told.stdout.strip()}; correct the "
            "options that it is given, or the cluster's state"
        )
    return told.stdout
