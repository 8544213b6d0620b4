"""`dist-ml gemm`: plan a distributed matrix product, or run it on the ranks that were started."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dist_ml.cli import arguments, compose, configured, ranks, terminal
from dist_ml.cli.arguments import Request
from dist_ml.config.convert import from_mapping
from dist_ml.config.gemm import GemmConfig

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator
    from dist_ml.gemm.experiment import Outcome

PROGRAM = "dist-ml gemm"


def main(argv: Sequence[str]) -> int:
    """`--plan` prints the plan for any number of ranks and stops, without MPI."""
    plan_only = "--plan" in argv
    request = arguments.parse([word for word in argv if word != "--plan"], PROGRAM, "gemm")
    if request.help or request.show:
        if request.help:
            terminal.say(
                "  --plan                 print grid, steps, words, messages, memory and seconds, "
                "and stop: for any ranks=…"
            )
        return configured.show(request, GemmConfig, PROGRAM)
    if plan_only:
        from dist_ml.gemm import from_config, plan_text

        config = from_mapping(GemmConfig, compose.composed(request))
        plan = from_config.plan_of(config)
        terminal.say(_table(plan_text.lines(plan, from_config.cost_model_of(config))))
        return 0
    return ranks.run_on_ranks(lambda world: _run(request, world), request.debug)


def _run(request: Request, world: "Communicator") -> int:
    from dist_ml.comm.agreement import from_root, raise_on_all_ranks
    from dist_ml.gemm import experiment, from_config, plan_text

    mapping = from_root(world, lambda: compose.composed(request))
    with raise_on_all_ranks(world):
        config = from_mapping(GemmConfig, mapping)
        from_config.plan_of(config, world.size)
        experiment.check_kernel(config.kernel)
    outcome = experiment.run(config, world)
    if world.rank == 0:
        lines = plan_text.lines(outcome.plan, from_config.cost_model_of(config))
        terminal.say(_table([*lines, *_measured(outcome)]))
    return 0


def _measured(outcome: "Outcome") -> list[tuple[str, str]]:
    fastest = min(outcome.seconds)
    most = max(moved.received for moved in outcome.moved)
    agree = "as planned on every rank" if outcome.as_planned else "NOT as planned"
    return [
        (
            "measured",
            f"{fastest:.4g} s, {outcome.flops / fastest / 1e9 if fastest else 0:.1f} GFLOP/s; "
            f"the slowest rank's best of {len(outcome.seconds)}",
        ),
        (
            "ledger",
            f"{most:,} words received by a rank, {agree} (what the MPI library's own collectives "
            "move is entered by formula)",
        ),
        (
            "checked",
            f"error {outcome.error_over_bound:.3g} of what rounding allows, against float64",
        ),
    ]


def _table(lines: list[tuple[str, str]]) -> str:
    return "\n".join(f"{what:10} {value}" for what, value in lines)
