"""How each activation of an encoder layer should lie in memory: the shortest path through what each
step takes from and to each layout, where between steps a layout may be changed at its cost.

Source: Ivanov et al., "Data movement is all you need", MLSys 2021, section 5 (global selection).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch.nn import functional

from dist_ml.bench.encoder_layer import LayerSizes, attention

ROWS, COLUMNS = "rows", "columns"  # what is contiguous: a token's features, or a feature's tokens
_LAYOUTS = (ROWS, COLUMNS)
Costs = Mapping[tuple[str, str], float]  # seconds by the layouts of what comes and what goes


Calls = Mapping[tuple[str, ...], Callable[[], object]]


class Step(NamedTuple):
    """One operator: the shape of what it takes, and itself by the layouts of what it takes and
    gives; of a product by that of its weights, too.
    """

    name: str
    takes: tuple[int, int]
    calls: Calls


class Path(NamedTuple):
    """The layouts that each step takes and gives; `seconds` with the changes between them."""

    seconds: float
    layouts: tuple[tuple[str, str], ...]


def shortest(steps: Sequence[Costs], changes: Sequence[float]) -> Path:
    """From rows to rows; a pair of layouts that a step can't do is not in its costs. `changes[i]`:
    seconds to change the layout of what step i takes, the last one of the result.
    """
    best = {ROWS: Path(0.0, ())}
    for costs, change in zip(steps, changes, strict=False):
        found: dict[str, Path] = {}
        for (taken, given), seconds in costs.items():
            for held, path in best.items():
                total = path.seconds + seconds + (change if held != taken else 0.0)
                if total < found.get(given, Path(math.inf, ())).seconds:
                    found[given] = Path(total, (*path.layouts, (taken, given)))
        best = found
    ends = [
        Path(path.seconds + (changes[-1] if held != ROWS else 0.0), path.layouts)
        for held, path in best.items()
    ]
    return min(ends)


def layer_steps(sizes: LayerSizes) -> Iterator[Step]:
    """The forward pass on all tokens, one step's tensors at a time. Attention takes and gives rows,
    and has copies of its own in it.
    """
    tokens, width, hidden = sizes.batch * sizes.tokens, sizes.width, sizes.hidden
    yield Step("qkv", (tokens, width), _products(tokens, width, 3 * width))
    qkv = torch.randn(sizes.batch, sizes.tokens, 3 * width)
    whole = partial(attention, qkv, sizes.heads, 0.0)
    yield Step("attention", (tokens, 3 * width), {(ROWS, ROWS): whole})
    yield Step("output", (tokens, width), _products(tokens, width, width))
    yield Step("add, norm", (tokens, width), _norms(tokens, width))
    yield Step("expand", (tokens, width), _products(tokens, width, hidden))
    yield Step("relu", (tokens, hidden), _relus(tokens, hidden))
    yield Step("contract", (tokens, hidden), _products(tokens, hidden, width))
    yield Step("add, norm", (tokens, width), _norms(tokens, width))


def change_call(num_rows: int, num_columns: int) -> Callable[[], object]:
    """From one layout to the other."""
    x = torch.randn(num_rows, num_columns)
    return lambda: x.t().contiguous()


def lying(num_rows: int, num_columns: int, layout: str) -> torch.Tensor:
    """A matrix of random numbers, in memory as the layout says."""
    if layout == ROWS:
        return torch.randn(num_rows, num_columns)
    return torch.randn(num_columns, num_rows).t()


def _products(m: int, k: int, n: int) -> Calls:
    calls: dict[tuple[str, ...], Callable[[], object]] = {}
    for taken, given, stored in product(_LAYOUTS, repeat=3):
        x, weight = lying(m, k, taken), lying(k, n, stored)
        pair = (x, weight) if given == ROWS else (weight.t(), x.t())
        calls[taken, given, stored] = partial(torch.mm, *pair)
    return calls


def _norms(m: int, n: int) -> Calls:
    """torch's norm gives rows, whatever it takes; the residual is such a result."""

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x + y, (n,))

    return {(each, ROWS): partial(call, lying(m, n, each), lying(m, n, ROWS)) for each in _LAYOUTS}


def _relus(m: int, n: int) -> Calls:
    return {(each, each): partial(torch.relu, lying(m, n, each)) for each in _LAYOUTS}
