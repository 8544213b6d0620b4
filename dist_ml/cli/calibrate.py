"""`dist-ml calibrate`: measure once what `dist-ml plan` computes with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_ml.cli import ranks, terminal
from dist_ml.cli.terminal import Parser

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator
    from dist_ml.plan.machine import Processor


def main(argv: Sequence[str]) -> int:
    """All ranks that were started, which share a node, measure at once."""
    parser = Parser(
        prog="dist-ml calibrate",
        description=(
            "Measure how fast this machine computes and its ranks reach each other, for dist-ml "
            "plan; a minute or two. Started on several ranks of a node (dist-ml launch -n 2 "
            "calibrate) it measures what each reaches while all compute."
        ),
    )
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks of errors that are the user's, too"
    )
    options = parser.parse_args(argv)
    return ranks.run_on_ranks(_calibrate, options.debug)


def _calibrate(world: "Communicator") -> int:
    from dist_ml.plan import calibrated
    from dist_ml.plan.calibrate import calibrate

    def tell(what: str) -> None:
        if world.rank == 0:
            terminal.say(f"measuring {what}")

    processor = calibrate(world, tell)
    if world.rank == 0:
        calibrated.store(processor)
        terminal.say(_in_words(processor))
    return 0


def _in_words(processor: "Processor") -> str:
    warm, cold = (
        2e-9 * 1024**3 / rates.products["NT"].at(1024, 1024, 1024)
        for rates in (processor.warm, processor.cold)
    )
    own = processor.constants
    return (
        f"{processor.computing} rank{'s' * (processor.computing > 1)} of {processor.threads} "
        f"thread{'s' * (processor.threads > 1)}: {warm:.0f} GFLOP/s each in products of 1024, "
        f"{cold:.0f} with weights from memory; {1e6 * own.operator_seconds:.1f} us an operator, "
        f"{1e6 * own.pass_seconds:.0f} us a micro-batch, {1e6 * own.step_seconds:.0f} us a step"
    )
