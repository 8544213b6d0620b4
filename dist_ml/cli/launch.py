"""`dist-ml launch`: start any other command, or any program, on P ranks with the chosen MPI, under
a time limit.

It only needs the standard library, so that a run starts as fast as its launcher does.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial

from dist_ml.cli import terminal
from dist_ml.cli.main import COMMANDS
from dist_ml.cli.quantities import count, number_of_ranks, time_limit
from dist_ml.errors import ConfigError
from dist_ml.launch import mpi_installation, mpiexec

# With one of these the command only shows something, or starts MPI jobs of its own.
_SWEEP = frozenset({"-m", "--multirun"})
_NEEDS_NO_RANKS = _SWEEP | {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}


def main(arguments: Sequence[str]) -> int:
    """Run `dist-ml launch`; returns the job's exit status, 124 when its time was up."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("which command? For instance: dist-ml launch -n 2 train")
    command, *words = options.command
    known = command in COMMANDS
    if options.restarts and (command != "train" or not _SWEEP.isdisjoint(words)):
        parser.error(
            "--restarts goes on with a single run of dist-ml train, as in: dist-ml launch "
            "--restarts 3 train checkpoint.every=100"
        )
    if known and not _NEEDS_NO_RANKS.isdisjoint(options.command):
        from dist_ml.cli.main import main as dist_ml

        if options.mpi:
            os.environ["DIST_ML_MPI"] = options.mpi  # for the jobs that it starts
        return dist_ml(_on_ranks(options.command, options.ranks))
    program = [sys.executable, "-m", "dist_ml", command] if known else _program(command)
    if options.restarts:
        from dist_ml.cli import restarts

        return restarts.run(words, options.restarts, partial(_start, options, program))
    return _start(options, program, words)


def _start(
    options: argparse.Namespace, program: list[str], words: Sequence[str], gone_seconds: float = 0.0
) -> int:
    """Run the job to its end; `gone_seconds` of its time limit have passed."""
    limit = None if options.time_limit is None else max(0.0, options.time_limit - gone_seconds)
    return mpiexec.run(
        [*program, *words],
        options.ranks,
        options.mpi,
        time_limit_seconds=limit,
        survive=options.survive,
    ).returncode


def _parser() -> terminal.Parser:
    parser = terminal.Parser(
        prog="dist-ml launch",
        description="Start a dist-ml command, or any program, on several ranks.",
    )
    parser.add_argument(
        "-n",
        "--ranks",
        type=number_of_ranks,
        default=2,
        help="how many ranks (default: %(default)s)",
    )
    parser.add_argument(
        "--mpi",
        choices=mpi_installation.NAMES,
        help="which MPI (default: DIST_ML_MPI, else the first found)",
    )
    parser.add_argument(
        "--time-limit",
        type=time_limit,
        metavar="SECONDS",
        help="end the job then, after printing every rank's stack",
    )
    parser.add_argument(
        "--restarts",
        type=count,
        default=0,
        metavar="N",
        help="train: start again from the last checkpoint, up to N times, where a rank or a node "
        "fails",
    )
    parser.add_argument(
        "--survive",
        action="store_true",
        help="Open MPI: the job outlives ranks that die, as fault.recover=shrink needs",
    )
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        help="a dist-ml command or a program and its arguments, as in: train data=mnist, or: "
        "python script.py",
    )
    return parser


def _program(name: str) -> list[str]:
    """The beginning of the command line of a program that isn't one of ours; this interpreter runs
    `python` and scripts, so that they find the packages that we have.
    """
    if name in ("python", "python3"):
        return [sys.executable]
    if name.endswith(".py"):
        return [sys.executable, name]
    if shutil.which(name) is None:
        raise ConfigError(
            f"{name} is neither a dist-ml command ({', '.join(COMMANDS)}) nor a program that is "
            "found; give its path, or: python script.py"
        )
    return [name]


def _on_ranks(command: list[str], ranks: int) -> list[str]:
    """A sweep starts its own jobs: each point that names no `ranks` has those of -n."""
    return (
        [*command, f"ranks={ranks}"]
        if not _SWEEP.isdisjoint(command) and not any(word.startswith("ranks=") for word in command)
        else command
    )
