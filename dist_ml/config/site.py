"""What jobs that are submitted on a cluster have in common: a small YAML file beside the flags of
`dist-ml submit`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from dist_ml.config.convert import from_mapping, show
from dist_ml.errors import ConfigError

# Minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, …
_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d+(:\d{1,2}){0,2}")


@dataclass(frozen=True)
class SiteConfig:
    """A site file. Its keys have the names of sbatch's options, where there is one."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None  # as sbatch reads it, in quotes: "30" minutes, "12:00:00", "2-00"
    ntasks_per_node: int | None = None  # ranks on each node; null: as --nodes has it
    cpus_per_task: int | None = None  # threads of each rank
    options: tuple[str, ...] = ()  # more of sbatch's: ["--qos=high", "--exclusive"]
    jobs_at_once: int | None = None  # points of a sweep that run side by side; null: any number
    python: str | None = None  # on the nodes; null: the one that submits
    mpi: Literal["mpich", "openmpi", "system"] | None = None  # null: DIST_ML_MPI, else the first

    def __post_init__(self) -> None:
        for name in ("partition", "account", "python"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ConfigError(
                    f"{name}={show(value)} is empty; give it a value, or leave it out"
                )
        for name in ("ntasks_per_node", "cpus_per_task", "jobs_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ConfigError(
                f"time={show(self.time)} is not a time limit of sbatch; give minutes, or "
                "hours:minutes:seconds, or days-hours"
            )
        for option in self.options:
            if not option.startswith("-"):
                raise ConfigError(
                    f"options holds {show(option)}, which sbatch would take for its script; each "
                    "is one option with its value: --qos=high"
                )


def load(file: Path) -> SiteConfig:
    """The site file; `ConfigError` for one that can't be read, and for a key that there isn't."""
    try:
        mapping = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"site file {file} can't be read: {reason}") from error
    try:
        if isinstance(mapping, dict) and isinstance(mapping.get("time"), int):
            raise ConfigError(
                f"time={mapping['time']} is what YAML makes of digits and colons; put it in "
                'quotes, as in time: "12:00:00"'
            )
        return from_mapping(SiteConfig, {} if mapping is None else mapping)
    except ConfigError as error:
        raise ConfigError(f"site file {file}: {error}") from None
