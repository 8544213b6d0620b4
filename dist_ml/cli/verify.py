"""`dist-ml verify RUN_A RUN_B`: are they the same to the last bit? Needs no MPI."""

from collections.abc import Sequence
from pathlib import Path

from dist_ml.cli import terminal
from dist_ml.cli.terminal import Parser


def main(argv: Sequence[str]) -> int:
    """0 where they are; 1 where they differ, with the first step and value that do."""
    parser = Parser(
        prog="dist-ml verify",
        description="Compare two runs bit by bit: losses and evaluations that both have logged, "
        "checkpoints that both have kept, and final weights. Status 1, and the first difference, "
        "where there is one.",
    )
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors, too")
    options = parser.parse_args(argv)
    from dist_ml.train.run_difference import compare_runs

    difference, compared = compare_runs(*options.runs)
    counts = ", ".join(f"{count} {kind}" for kind, count in compared.items())
    if difference is not None:
        terminal.say(f"different {difference} (compared: {counts})")
        return 1
    terminal.say(f"the same to the last bit: {counts}")
    return 0
