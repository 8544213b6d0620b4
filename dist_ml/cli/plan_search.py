"""`dist-ml plan --search`: the ten best ways to spread a run's step over its ranks."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dist_ml.cli import terminal
from dist_ml.cli.tables import pairs, print_table
from dist_ml.config.train import TrainConfig
from dist_ml.measure.memory import physical_bytes, spell_bytes

if TYPE_CHECKING:
    from dist_ml.measure.cost_model import Link
    from dist_ml.plan.search import Choice, Found

_MOST_REASONS = 3
_AS_LONG = 5e-4  # more


def held_keys(overrides: Sequence[str]) -> set[str]:
    """The knobs that a command line names, alone (`pipeline.name=gpipe`) or by their group's option
    (`pipeline=gpipe`).
    """
    from dist_ml.plan.candidates import KNOBS

    named = {override.partition("=")[0].lstrip("+~") for override in overrides}
    by_group = {knob for knob in KNOBS if knob.rpartition(".")[0] in named}
    return {knob for knob in KNOBS if knob in named} | by_group - {"pipeline.microbatches"}


def run(
    config: TrainConfig,
    overrides: Sequence[str],
    num_ranks: int,
    num_nodes: int,
    link: "Link | None",
    threads: int,
    node_bytes: int | None,
) -> dict[str, Any]:
    """Search and show; what was found, for a JSON file."""
    from dist_ml.plan.candidates import Candidates
    from dist_ml.plan.prediction import node_ranks, nodes_like_this
    from dist_ml.plan.search import search

    start = time.perf_counter()
    ranks_per_node = node_ranks(num_ranks, num_nodes)
    machine = nodes_like_this(ranks_per_node, link, threads)
    room = (node_bytes or physical_bytes()) // ranks_per_node
    held = held_keys(overrides)
    found = search(Candidates(config, held, num_ranks, ranks_per_node), machine, room)
    seconds = time.perf_counter() - start
    _show_space(found, config, held, room, seconds)
    if found.best:
        _show_best(found.best)
        _show_why(found.best)
        _show_overrides(found.best[0], config)
    return {
        "ranks": num_ranks,
        "nodes": num_nodes,
        "candidates": found.candidates,
        "planned": found.costed,
        "refused": dict(found.refused),
        "too_large": found.too_large,
        "rank_bytes": room,
        "search_seconds": seconds,
        "best": [choice.to_mapping(config) for choice in found.best],
    }


def _show_space(
    found: "Found", config: TrainConfig, held: set[str], room: int, seconds: float
) -> None:
    from dist_ml.plan.candidates import KNOBS

    free = [knob for knob in KNOBS if knob not in held]
    _say_all("searched", free)
    _say_all("held", sorted(held) or ["nothing"])
    refused = found.refused.total()
    ruled_out = found.candidates - found.costed - refused - found.too_large
    _say_all(
        "candidates",
        [
            f"{found.candidates:,} in {seconds:.1f} s:",
            f"{found.costed:,} planned,",
            f"{ruled_out:,} ruled out by a bound,",
            f"{refused:,} refused,",
            f"{found.too_large:,} too large for the {spell_bytes(room)} of a rank",
        ],
    )
    for reason, times in _alike(found.refused):
        _say_all("refused", [f"{times:,} as:", *reason.split()])
    if not found.best and found.smallest is not None and found.smallest_bytes is not None:
        from dist_ml.plan.candidates import overrides

        smallest = " ".join(overrides(found.smallest, config))
        words = f"the smallest takes {spell_bytes(found.smallest_bytes)} a rank: {smallest}"
        _say_all("nothing fits", words.split())
    elif not found.best:
        _say_all("nothing", ["is left; name fewer keys"])


def _alike(refused: Counter[str]) -> list[tuple[str, int]]:
    """Reasons that differ in numbers alone are one, told by its most frequent one."""
    times: Counter[str] = Counter()
    example: dict[str, str] = {}
    for reason, count in refused.most_common():
        kind = re.sub(r"[0-9]+", "#", reason)
        times[kind] += count
        example.setdefault(kind, reason)
    return [(example[kind], count) for kind, count in times.most_common(_MOST_REASONS)]


def _show_best(best: Sequence["Choice"]) -> None:
    terminal.say("")
    headers = ["", "mesh", "pieces", "schedule", "layout", "exchange", "numbers", "step", "memory"]
    rows = []
    for place, choice in enumerate(best, 1):
        config, plan = choice.config, choice.plan
        rows.append(
            [
                str(place),
                "x".join(str(size) for size in plan.sizes.values()),
                f"{plan.schedule.num_microbatches}x{plan.microbatch}",
                plan.schedule.name if plan.sizes["pipeline"] > 1 else "-",
                config.operator_parallel.layout if plan.sizes["operator"] > 1 else "-",
                _exchange(config) if plan.sizes["data"] > 1 else "-",
                config.precision,
                _spell_seconds(choice.seconds.total),
                spell_bytes(sum(choice.memory.values())).replace(" ", ""),
            ]
        )
    print_table(Console(highlight=False), headers, rows, [False] * 7 + [True] * 2, gap=1)


def _spell_seconds(seconds: float) -> str:
    return f"{seconds:.4g} s" if seconds >= 1 else f"{1e3 * seconds:.4g} ms"


def _exchange(config: TrainConfig) -> str:
    if config.data_parallel.name != "dense":
        return config.data_parallel.name
    wire = f" {config.allreduce.wire}" if config.allreduce.wire != "fp32" else ""
    return f"{config.allreduce.name}{wire}"


def _show_why(best: Sequence["Choice"]) -> None:
    """Phase by phase, what the second takes over the best."""
    if len(best) < 2:
        return
    one, other = (choice.seconds for choice in best[:2])
    terminal.say("")
    parts = []
    for name in dict.fromkeys((*_phases(best[0]), *_phases(best[1]))):
        ours, theirs = (_phases(choice).get(name, 0.0) for choice in best[:2])
        parts.append((name, f"{_spell_seconds(ours)} against {_spell_seconds(theirs)};"))
    more = other.total / one.total - 1
    if more < _AS_LONG:
        held = [spell_bytes(sum(choice.memory.values())) for choice in best[:2]]
        words = f"the second takes as long, and {held[1]} a rank against {held[0]}:"
    else:
        words = f"the second takes {more:.1%} more:"
    _say_all("why", words.split())
    for line in pairs(parts, 68):
        terminal.say(f"{'':12}{line}")


def _phases(choice: "Choice") -> dict[str, float]:
    """With a pipeline's time as what its ranks compute and what they idle."""
    phases = dict(choice.seconds.phases)
    pipeline = phases.pop("pipeline", None)
    if pipeline is None:
        return phases
    idle = choice.seconds.bubble * pipeline
    return {"passes": pipeline - idle, "idle": idle, **phases}


def _show_overrides(best: "Choice", config: TrainConfig) -> None:
    from dist_ml.plan.candidates import overrides

    terminal.say("")
    total = best.seconds.total
    told = [f"{_spell_seconds(total)} a step, {config.batch_size / total:,.4g} samples/s:"]
    _say_all("the best", [*told, *overrides(best.config, config)])


def _say_all(label: str, words: Sequence[str]) -> None:
    """In lines of 80 columns, below each other."""
    line = f"{label:12}"
    for word in words:
        if len(line) + len(word) > 80 and line.strip():
            terminal.say(line.rstrip())
            line = " " * 12
        line += word + " "
    terminal.say(line.rstrip())
