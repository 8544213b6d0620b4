"""Buckets: consecutive parts of the flat gradient that are exchanged as one, in the order in which
backward passes fill them.
"""

from collections.abc import Sequence

from dist_ml.partition import Range

SMALLEST_AUTO_BYTES = 1 << 20
NUM_AUTO = 16


def choose_bytes(configured: int | None, num_bytes: int) -> int:
    """The configured size, or a sixteenth of the gradient: enough of them to overlap, none so short
    that messages cost more.
    """
    return configured if configured is not None else max(SMALLEST_AUTO_BYTES, num_bytes // NUM_AUTO)


def cut(ranges: Sequence[Range], total: int, bucket_words: int) -> list[Range]:
    """Buckets that cover [0, total), the last one first, each of whole parameters (`ranges`) and at
    least `bucket_words` long.

    Only the bucket of the first parameters may be shorter. What follows the last parameter belongs
    to the first bucket.
    """
    buckets: list[Range] = []
    stop = total
    for part in reversed(ranges):
        if stop - part.start >= bucket_words or part.start == 0:
            buckets.append(Range(part.start, stop))
            stop = part.start
    return buckets
