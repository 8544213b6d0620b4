"""A threshold that is reused while the magnitudes below and above it slowly change."""

import math

# A reused threshold may move by a quarter a step: enough to follow training, too little to be
# thrown off by one odd step.
MAX_CHANGE = 0.25


def adjust_threshold(threshold: float, count: int, k: int, length: int) -> float:
    """The threshold for the next step, after `count` of `length` magnitudes were above this one and
    `k` were wanted.

    One Newton step on log(count), as if magnitudes were exponentially distributed: there, count = n
    exp(-t/b), hence t = b ln(n/k) at the count wanted, and a count that is off by a factor r asks
    for t (1 + ln r / ln(n/k)). Heavier tails are approached from one side, lighter ones within a
    few steps. Bounded by `MAX_CHANGE`.
    """
    if k >= length:
        return 0.0
    decades = max(math.log(length / k), 0.5)
    change = math.log(max(count, 0.5) / k) / decades
    return threshold * (1.0 + min(MAX_CHANGE, max(-MAX_CHANGE, change)))
