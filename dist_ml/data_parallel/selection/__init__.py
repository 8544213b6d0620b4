"""What to send: about k elements of largest magnitude of gradient + residual, found in one pass
over both.
"""

from collections.abc import Callable

from dist_ml.data_parallel.selection.exact import ExactTopk
from dist_ml.data_parallel.selection.selection import Selection, count_of
from dist_ml.data_parallel.selection.threshold import (
    GaussianThreshold,
    ReusedThreshold,
    SampledThreshold,
)

# name -> (steps between exact thresholds, seed) -> a selection with its own memory
SELECTIONS: dict[str, Callable[[int, int], Selection]] = {
    "exact": lambda _period, seed: ExactTopk(seed),
    "threshold": lambda period, seed: ReusedThreshold(period, seed),
    "sampled": lambda _period, seed: SampledThreshold(seed),
    "gaussian": lambda _period, seed: GaussianThreshold(seed),
}

__all__ = ["SELECTIONS", "Selection", "count_of"]
