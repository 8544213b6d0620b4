"""Views of tensors that are communicated again are remembered, and never once they are no longer
true.
"""

import gc
import weakref

import numpy as np
import pytest
import torch

from dist_ml.comm.buffer import Buffer
from dist_ml.comm.buffer_cache import BufferCache
from dist_ml.errors import CommunicationError


def view_of(cache: BufferCache, x: torch.Tensor) -> Buffer:
    return cache.find(x) or cache.make(x)


def test_a_view_is_of_the_tensors_own_memory_and_remembered() -> None:
    cache, x = BufferCache(), torch.zeros(2, 3)
    view = cache.make(x)
    view.array[4] = 7
    assert x[1, 1] == 7
    assert cache.find(x) is view
    assert cache.make(np.ones(3)).array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_a_tensor_that_got_other_memory_gets_another_view(dtype: torch.dtype) -> None:
    cache, x = BufferCache(), torch.zeros(6, dtype=dtype)
    view_of(cache, x)
    x.data = torch.ones(6, dtype=dtype)
    view_of(cache, x).array[0] = 0
    assert x.tolist() == [0, 1, 1, 1, 1, 1]
    x.data = torch.ones(4, dtype=dtype)
    assert view_of(cache, x).array.size == 4


def test_another_dtype_or_layout_on_the_same_memory_is_seen() -> None:
    cache, x = BufferCache(), torch.ones(2, 3)
    assert view_of(cache, x).dtype == "float32"
    x.data = x.data.view(torch.int32)
    assert view_of(cache, x).dtype == "int32"
    x.t_()
    with pytest.raises(CommunicationError, match="not contiguous"):
        view_of(cache, x)


def test_no_tensor_is_kept_alive() -> None:
    cache = BufferCache()
    x = torch.zeros(1000, requires_grad=True)
    y = torch.zeros(1000)
    dead = [
        weakref.ref(x),
        weakref.ref(y),
        weakref.ref(view_of(cache, x).array),
        weakref.ref(view_of(cache, y).array),
    ]
    del x, y
    gc.collect()
    assert [reference() for reference in dead] == [None] * 4
