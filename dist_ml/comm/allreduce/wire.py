"""What a number looks like on its way to another rank: as it is, or rounded to 16 bits. Sums are
made in full precision.
"""

from typing import Literal, TypeAlias

import numpy as np
import torch

from dist_ml.comm.buffer import Array
from dist_ml.errors import ConfigError

WireName: TypeAlias = Literal["fp32", "bf16", "fp16"]

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Wire:
    """Packs arrays for sending and unpacks what was received. `fp32` sends the elements as they
    are, without a copy.

    bf16 keeps 8 significant bits and fp32's range; fp16 keeps 11 and overflows to infinity above
    65504.
    """

    def __init__(self, name: WireName) -> None:
        if name != "fp32" and name not in _HALVES:
            raise ConfigError(f"wire={name} is not one of fp32, bf16, fp16")
        self.name = name
        self._half = _HALVES.get(name)

    def word_bytes(self, item_bytes: int) -> int:
        """Bytes of one word on the wire, for elements of `item_bytes`."""
        return item_bytes if self._half is None else 2

    def check(self, dtype: np.dtype[np.generic]) -> None:
        """`ConfigError` where rounding would throw away the precision that was asked for."""
        if self._half is not None and dtype != np.float32:
            raise ConfigError(
                f"wire={self.name} rounds float32 gradients, but these are {dtype}; wire=fp32 "
                "sends them unchanged"
            )

    def pack(self, array: Array) -> Array:
        """What to send for `array`: itself, or a rounded copy (as 16-bit integers)."""
        if self._half is None:
            return array
        packed = torch.from_numpy(array).to(self._half)
        return packed.view(torch.int16).numpy()

    def room(self, n: int, dtype: np.dtype[np.generic]) -> Array:
        """Memory to receive n packed elements of `dtype` in."""
        return np.empty(n, dtype=dtype if self._half is None else np.int16)

    def add(self, packed: Array, array: Array) -> None:
        """array += what was received."""
        if self._half is None:
            np.add(array, packed, out=array)
        else:
            torch.from_numpy(array).add_(torch.from_numpy(packed).view(self._half))

    def unpack(self, packed: Array, array: Array) -> None:
        """array = what was received."""
        if self._half is None:
            array[...] = packed
        else:
            torch.from_numpy(array).copy_(torch.from_numpy(packed).view(self._half))

    def round(self, array: Array) -> None:
        """Round `array` in place to what the other ranks will receive of it, so that all ranks hold
        the same bits.
        """
        if self._half is not None:
            self.unpack(self.pack(array), array)

    @property
    def in_place(self) -> bool:
        """Whether what is received can go straight to where it belongs."""
        return self._half is None
