"""Training configurations with a value that mostly doesn't fit, from a seed."""

import copy
import functools
import math
import operator
import random
from collections.abc import Iterator
from typing import Any

from dist_ml.train.metrics import flatten
from tests import configurations

NUM_MAPPINGS = 400
SEED = 10
ODD = [None, True, -1, 0, 1, 2.5, math.inf, -math.inf, math.nan, 10**12, 10**30, "", "1e-3", "x",
       "..", "\0", [], [0], [-1], [None], {}, {"a": 1}, [[1]], "y" * 5000]  # fmt: skip


def mappings(
    num: int = NUM_MAPPINGS, seed: int = SEED
) -> Iterator[tuple[tuple[str, Any], dict[str, Any]]]:
    """(key, value), and the default configuration with that value at that key."""
    chance = random.Random(seed)
    start = configurations.mapping()
    keys = [*flatten(start), "data", "model", "nowhere", "optimizer.nowhere"]
    for _ in range(num):
        key, value = chance.choice(keys), chance.choice(ODD)
        mapping = copy.deepcopy(start)
        *groups, name = key.split(".")
        functools.reduce(operator.getitem, groups, mapping)[name] = value
        yield (key, value), mapping
