"""`dist-ml launch`: start any other command on P ranks with the chosen MPI, under a time limit.

It only needs the standard library, so that a run starts as fast as its launcher does.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from dist_ml.cli import terminal
from dist_ml.cli.quantities import number_of_ranks, time_limit
from dist_ml.launch import mpi_installation, mpiexec

# With one of these the command only shows something, or starts MPI jobs of its own.
_NEEDS_NO_RANKS = frozenset(
    {"-m", "--multirun", "-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"}
)


def main(arguments: Sequence[str]) -> int:
    """Run `dist-ml launch`; returns the job's exit status, 124 when its time was up."""
    parser = terminal.Parser(
        prog="dist-ml launch", description="Start a dist-ml command on several ranks."
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
        "command",
        nargs=argparse.REMAINDER,
        help="a dist-ml command and its arguments, as in: train data=mnist",
    )
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("which command? For instance: dist-ml launch -n 2 train")
    if not _NEEDS_NO_RANKS.isdisjoint(options.command):
        from dist_ml.cli.main import main as dist_ml

        if options.mpi:
            os.environ["DIST_ML_MPI"] = options.mpi  # for the jobs that it starts
        return dist_ml(_on_ranks(options.command, options.ranks))
    program = [sys.executable, "-m", "dist_ml", *options.command]
    return mpiexec.run(
        program, options.ranks, options.mpi, time_limit_seconds=options.time_limit
    ).returncode


def _on_ranks(command: list[str], ranks: int) -> list[str]:
    """A sweep starts its own jobs: each point that names no `ranks` has those of -n."""
    sweep = {"-m", "--multirun"} & set(command)
    return (
        [*command, f"ranks={ranks}"]
        if sweep and not any(word.startswith("ranks=") for word in command)
        else command
    )
