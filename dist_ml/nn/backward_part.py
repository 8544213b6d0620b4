"""Which part of a backward pass runs now, for layers that compute their gradients themselves.

Torch computes only the gradients that lead to what was asked for; a custom function is called for
all of its inputs' gradients whatever was asked, so it looks here.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

Part: TypeAlias = Literal["whole", "input", "weight"]

_now = threading.local()


@contextmanager
def backward_part(part: Part) -> Iterator[None]:
    """Backward passes on this thread are of this part only."""
    before = current()
    _now.part = part
    try:
        yield
    finally:
        _now.part = before


def current() -> Part:
    """The part that runs on this thread."""
    part: Part = getattr(_now, "part", "whole")
    return part
