"""`dist-ml bench operator_words`: are the words that layers shared by ranks state those that pass,
and those of the textbook?

Stated is the closed form that a run plans with. Seen are the elements of the messages that a
forward and a backward pass send where every collective is made of messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result, most
from dist_ml.bench.message_collectives import in_messages
from dist_ml.bench.operator_formulas import textbook_words
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.communicator import Communicator
from dist_ml.models import MLP
from dist_ml.operator_parallel.grid import OperatorGrid, Sides
from dist_ml.operator_parallel.layers import ParallelLayers
from dist_ml.operator_parallel.layout import sides_for
from dist_ml.operator_parallel.words import Layer, model_words

_TOLERANCE = 0.02
_WHICH = ("layout", "ranks", "grid", "batch")
SHOWN = (*_WHICH, "stated forward", "seen forward", "stated backward", "seen backward",
         "unlike seen", "whole", "difference")  # fmt: skip
BOOK = (*_WHICH, "forward without biases", "textbook forward", "backward without biases",
        "textbook backward")  # fmt: skip


@dataclass(frozen=True)
class OperatorWordsBench:
    """What to run."""

    worlds: tuple[int, ...]  # numbers of ranks
    layouts: tuple[str, ...]
    width: int  # of square layers, for the textbook's forms: divisible by the numbers of ranks
    num_layers: int
    batch: int  # samples, likewise
    uneven_widths: tuple[int, ...]  # of another MLP, features and classes included
    uneven_batch: int


def run(config: OperatorWordsBench, worlds: Worlds) -> Result:
    models = [
        {"widths": (config.width,) * (config.num_layers + 1), "batch": config.batch, "even": True},
        {"widths": config.uneven_widths, "batch": config.uneven_batch, "even": False},
    ]
    arguments = {"layouts": config.layouts, "models": models}
    records: list[Record] = []
    for ranks in config.worlds:
        records += worlds.measure("operator_words", arguments, ranks=ranks)
    shown = [{key: record[key] for key in SHOWN} for record in records]
    books = [
        {key: record[key] for key in BOOK}
        for record in records
        if record["textbook forward"] is not None
    ]
    return Result("operator_words", [*shown, *books], word_checks(records, config.layouts))


def word_checks(records: Sequence[Record], layouts: Sequence[str]) -> list[Check]:
    """A layout's worst rank, pass and number of ranks; what was not seen fails."""
    checks: list[Check] = []
    for layout in layouts:
        own = [record for record in records if record["layout"] == layout]
        unlike = most(record["unlike seen"] for record in own)
        apart = most(
            _apart(record[f"textbook {which}"], record[f"{which} without biases"])
            for record in own
            if record["textbook forward"] is not None
            for which in ("forward", "backward")
        )
        checks += [
            Check(f"words seen unlike stated, {layout}", unlike, _TOLERANCE, "lower"),
            Check(f"words stated unlike the textbook's, {layout}", apart, _TOLERANCE, "lower"),
        ]
    unseen = sum(not record["whole"] for record in records)
    wrong = most(record["difference"] for record in records)
    return [
        *checks,
        Check("passes in which something moved unseen", unseen, 0, "lower"),
        Check("difference of results to those of MPI's collectives", wrong, 1e-10, "lower"),
    ]


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[Record]:
    """A row a layout and model: words of the rank with most."""
    return [
        _one(comm, layout, sides_for(layout, comm.size, ()), model)
        for model in arguments["models"]
        for layout in arguments["layouts"]
    ]


def _one(comm: Communicator, layout: str, sides: Sides, model: Mapping[str, Any]) -> Record:
    widths, batch = model["widths"], model["batch"]
    own, seen = in_messages(comm)
    counts, results = _passes(own, layout, sides, widths, batch, lambda: seen.sent)
    _, expected = _passes(comm, layout, sides, widths, batch, lambda: 0)
    difference = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) if a.numel() else 0.0
        for a, b in zip(results, expected, strict=True)
    )
    layers = [Layer(f"layers.{i}", *pair) for i, pair in enumerate(pairwise(widths))]
    stated, bare = (
        [sum(each) for each in zip(*words, strict=True)]
        for words in (
            model_words(layout, sides, layers, batch, comm.rank, bias=bias)
            for bias in (True, False)
        )
    )
    told = comm.allgather_objects((stated, bare, counts, seen.whole, difference))
    found, plain, passed, whole, apart = zip(*told, strict=True)
    book = textbook_words(layout, sides, len(layers), batch, widths[0]) if model["even"] else None
    return {
        "layout": layout,
        "ranks": comm.size,
        "grid": "x".join(map(str, sides)),
        "batch": batch,
        "stated forward": max(words[0] for words in found),
        "seen forward": max(words[0] for words in passed),
        "stated backward": max(words[1] for words in found),
        "seen backward": max(words[1] for words in passed),
        "forward without biases": max(words[0] for words in plain),
        "textbook forward": book and round(book.forward),
        "backward without biases": max(words[1] for words in plain),
        "textbook backward": book and round(book.backward),
        "unlike seen": max(
            _apart(pair[which], words[which])
            for pair, words in zip(found, passed, strict=True)
            for which in (0, 1)
        ),
        "whole": all(whole),
        "difference": max(apart),
    }


def _passes(
    comm: Communicator, layout: str, sides: Sides, widths: Sequence[int], batch: int, count: Any
) -> tuple[tuple[int, int], list[torch.Tensor]]:
    """What was counted in a forward and a backward pass; outputs and gradients."""
    factory = ParallelLayers(OperatorGrid(comm, sides), layout, {}, "torch")
    model = MLP(widths, "tanh", dtype=torch.float64, layers=factory)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(batch, widths[0], dtype=torch.float64, generator=generator)
    start = count()
    outputs = model(inputs)
    middle = count()
    outputs.square().sum().backward()
    end = count()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return (middle - start, end - middle), [outputs.detach(), *gradients]


def _apart(stated: float, other: float) -> float:
    """The difference, relative to what is stated; of nothing, the words themselves."""
    return abs(other - stated) / max(1.0, abs(stated))


BENCH = Bench(
    "words of layers shared by ranks: stated, seen and the textbook's",
    OperatorWordsBench,
    run,
    {"operator_words": measure},
    ranks=4,
)
