"""Training configurations with a value that mostly doesn't fit, from a seed."""

import copy
import functools
import math
import operator
import random
from collections.abc import Iterator
from typing import Any

from dist_ml.cli import arguments, compose
from dist_ml.train.metrics import flatten

NUM_MAPPINGS = 400
SEED = 10
ODD = [None, True, -1, 0, 1, 2.5, math.inf, -math.inf, math.nan, 10**12, 10**30, "", "1e-3", "x",
       "..", "\0", [], [0], [-1], [None], {}, {"a": 1}, [[1]], "y" * 5000]  # fmt: skip


def mappings() -> Iterator[tuple[tuple[str, Any], dict[str, Any]]]:
    """(key, value), and the default configuration with that value at that key."""
    chance = random.Random(SEED)
    start = default()
    keys = [*flatten(start), "data", "model", "nowhere", "optimizer.nowhere"]
    for _ in range(NUM_MAPPINGS):
        key, value = chance.choice(keys), chance.choice(ODD)
        mapping = copy.deepcopy(start)
        *groups, name = key.split(".")
        functools.reduce(operator.getitem, groups, mapping)[name] = value
        yield (key, value), mapping


def default() -> dict[str, Any]:
    return compose.composed(arguments.parse([], "dist-ml train", "train"))
