"""`dist-ml COMMAND …`: one table of commands, each in a module of its own that is imported when it
is called.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from dist_ml.cli import terminal
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.launch import stacks

# What `dist-ml NAME` runs: `main(argv) -> exit status` of a module that imports torch and MPI only
# where it needs them.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": (
        "dist_ml.cli.train",
        "train a network on the ranks that were started, or a sweep with --multirun",
    ),
    "evaluate": (
        "dist_ml.cli.evaluate",
        "measure a finished run's saved weights on the test samples",
    ),
    "experiment": (
        "dist_ml.cli.experiment",
        "run a scaling experiment from its configuration, and report on it",
    ),
    "submit": (
        "dist_ml.cli.submit",
        "send a run, or with --multirun a sweep, to Slurm, or print the command that does",
    ),
    "report": (
        "dist_ml.cli.report",
        "tabulate runs, plot their losses and step times, or write all of it as an HTML page",
    ),
    "verify": (
        "dist_ml.cli.verify",
        "tell whether two runs are the same to the last bit, or where they first differ; no MPI",
    ),
    "checkpoint": (
        "dist_ml.cli.checkpoint",
        "show, verify, export and import checkpoints; no MPI",
    ),
    "bench": ("dist_ml.cli.bench", "run a benchmark and hold its figures against their limits"),
    "plan": (
        "dist_ml.cli.plan",
        "tell what a run would compute, move, hold and take; no MPI",
    ),
    "calibrate": ("dist_ml.cli.calibrate", "measure what dist-ml plan computes with"),
    "schedule": ("dist_ml.cli.schedule", "prove, time and draw a pipeline schedule"),
    "gemm": ("dist_ml.cli.gemm", "plan and run distributed matrix products"),
    "launch": ("dist_ml.cli.launch", "start a program on P ranks of this machine"),
    "doctor": (
        "dist_ml.cli.doctor",
        "tell what this machine, its MPI and its launcher can do; hang RUN: why a run hung",
    ),
}


# For how long threads of torch (GNU OpenMP: in tries, 300,000 by default) and of numpy (OpenBLAS:
# in powers of two of cycles, 26) ask for more work before they sleep. The defaults are milliseconds
# in which they take cores from each other's threads: products on one library, with small operations
# on the other in between, then ran at half their rate. Read when the libraries are loaded.
_SPINNING = {"GOMP_SPINCOUNT": "1000", "OPENBLAS_THREAD_TIMEOUT": "4"}


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command and give its exit status; every failure has been put into words by then."""
    stacks.arm()
    for name, value in _SPINNING.items():
        os.environ.setdefault(name, value)
    try:
        return _command(argv)(argv[1:])
    except (DistMLError, KeyboardInterrupt) as error:
        return terminal.in_words(error, debug="--debug" in argv)
    finally:
        terminal.show_cursor()


def _command(argv: Sequence[str]) -> Callable[[Sequence[str]], int]:
    """What the first word names: called with the others, it gives the exit status."""
    name = argv[0] if argv else "help"
    if name in ("-h", "--help", "help"):
        return _say_help
    if name == "--version":
        return _say_version
    if name not in COMMANDS:
        raise ConfigError(
            f"unknown command {name!r}; there are {', '.join(COMMANDS)} (dist-ml --help tells "
            "what they do)"
        )
    command: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[name][0]).main
    return command


def _say_version(_: Sequence[str]) -> int:
    from dist_ml import __version__

    terminal.say(f"dist-ml {__version__}")
    return 0


def _say_help(_: Sequence[str]) -> int:
    terminal.say(_help())
    return 0


def _help() -> str:
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dist-ml COMMAND [options]        dist-ml COMMAND --help tells more",
            "",
            *lines,
            "",
            "On several ranks:  dist-ml launch -n 4 train     or     mpiexec -n 4 dist-ml train   "
            "  or     srun … dist-ml train",
        ]
    )
