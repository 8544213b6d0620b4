"""Values in fewer bits: as they are, bf16, 4 bits with a scale per bucket, and QSGD's unbiased
rounding.

All but QSGD round to nearest, and their loss is kept by the sender as residual. QSGD (Alistarh et
al., NeurIPS 2017, section 3) rounds up or down by a coin flip so that the expectation is exact, and
keeps nothing.
"""

from typing import Protocol

import numpy as np
import torch

from dist_ml import compiled
from dist_ml.comm.buffer import Array

BUCKET_BITS = 10
BUCKET = 1 << BUCKET_BITS
LANE_BITS = {2: 2, 4: 1, 8: 0}  # QSGD bits -> log2 of the values in a byte
INT4_LEVELS = 7


class Format(Protocol):
    """A value format: `encode` gives the bytes and the values as the receiver will see them."""

    def encode(self, values: Array) -> tuple[Array, Array]: ...
    def decode(self, coded: Array, num: int, dtype: str) -> Array: ...


class Exact:
    """All bits."""

    def encode(self, values: Array) -> tuple[Array, Array]:
        return np.ascontiguousarray(values).view(np.uint8), values

    def decode(self, coded: Array, num: int, dtype: str) -> Array:
        return coded[: num * np.dtype(dtype).itemsize].copy().view(dtype)


class Bfloat16:
    """16 bits, rounded to nearest even."""

    def encode(self, values: Array) -> tuple[Array, Array]:
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        seen = rounded.to(torch.float32).numpy().astype(values.dtype, copy=False)
        return rounded.view(torch.int16).numpy().view(np.uint8), seen

    def decode(self, coded: Array, num: int, dtype: str) -> Array:
        halves = torch.from_numpy(coded[: 2 * num].copy().view(np.int16)).view(torch.bfloat16)
        return halves.to(torch.float32).numpy().astype(dtype, copy=False)


class Int4:
    """Sign and 3 bits, in steps of a seventh of the largest magnitude of each bucket of 1024; half
    a byte and 4/1024 a value.

    A bucket with a value that is not finite arrives with none that is: its scale isn't.
    """

    def encode(self, values: Array) -> tuple[Array, Array]:
        scales = bucket_scales(values)
        steps = spread(_int4_steps(scales), values.size)
        with np.errstate(invalid="ignore"):
            units = np.rint(values / steps)
            levels = np.fmax(np.fmin(units, INT4_LEVELS), -INT4_LEVELS).astype(np.int8)
            seen = (levels * steps).astype(values.dtype, copy=False)
        return np.concatenate([scales.view(np.uint8), pack_levels(levels + 8, 4)]), seen

    def decode(self, coded: Array, num: int, dtype: str) -> Array:
        num_buckets = -(-num // BUCKET)
        scales = coded[: 4 * num_buckets].copy().view(np.float32)
        steps = spread(_int4_steps(scales), num)
        levels = unpack_levels(coded[4 * num_buckets :], 4, num).astype(np.int8) - 8
        with np.errstate(invalid="ignore"):
            return (levels * steps).astype(dtype, copy=False)


FORMATS: dict[str, Format] = {"fp32": Exact(), "bf16": Bfloat16(), "int4": Int4()}


def qsgd_encode(values: Array, bits: int, random: np.random.Generator) -> Array:
    """Each value as sign and level of 2^(bits-1) - 1 levels of its bucket's largest magnitude,
    rounded by a coin: uint8 bytes.
    """
    if compiled.available():
        from dist_ml.comm.sparse import compiled_loops

        scales, packed = bucket_scales(values), np.zeros(-(-values.size * bits // 8), np.uint8)
        compiled_loops.qsgd_pack(
            values,
            scales,
            bits,
            LANE_BITS[bits],
            BUCKET_BITS,
            np.uint64(random.integers(1 << 62)),
            packed,
        )
        return np.concatenate([scales.view(np.uint8), packed])
    top = 2 ** (bits - 1) - 1
    scales = bucket_scales(values)
    with np.errstate(invalid="ignore"):
        units = np.abs(values) / spread(np.where(scales > 0, scales, 1), values.size) * top
    levels = np.fmin(np.floor(units + random.random(values.size, dtype=np.float32)), top)
    signed = np.where(values < 0, -levels, levels).astype(np.int16) + top
    return np.concatenate([scales.view(np.uint8), pack_levels(signed.astype(np.uint8), bits)])


def qsgd_decode(coded: Array, bits: int, num: int, dtype: str) -> Array:
    """The values that `qsgd_encode` wrote, on its grid."""
    top = 2 ** (bits - 1) - 1
    num_buckets = -(-num // BUCKET)
    scales = coded[: 4 * num_buckets].copy().view(np.float32)
    if compiled.available():
        from dist_ml.comm.sparse import compiled_loops

        decoded: Array = np.empty(num, dtype)
        steps = scales / np.float32(top)
        compiled_loops.qsgd_unpack(
            coded[4 * num_buckets :], steps, bits, LANE_BITS[bits], BUCKET_BITS, decoded
        )
        return decoded
    levels = unpack_levels(coded[4 * num_buckets :], bits, num).astype(np.float32) - top
    with np.errstate(invalid="ignore"):
        values: Array = (levels * spread(scales / top, num)).astype(dtype, copy=False)
    return values


def qsgd_bytes(num: int, bits: int) -> int:
    """The size of `num` coded values."""
    return 4 * -(-num // BUCKET) + -(-num * bits // 8)


def bucket_scales(values: Array) -> Array:
    """The largest magnitude of each bucket (float32, one per 1024 values)."""
    if not values.size:
        return np.empty(0, np.float32)
    scales: Array = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, BUCKET)).astype(
        np.float32
    )
    return scales


def spread(per_bucket: Array, num: int) -> Array:
    """Each bucket's number at each of its values."""
    return np.repeat(per_bucket, BUCKET)[:num]


def _int4_steps(scales: Array) -> Array:
    """The step of each bucket: 1 where all values are zero, not finite where the scale isn't."""
    steps: Array = np.where(scales == 0, 1, scales / INT4_LEVELS).astype(np.float32)
    return steps


def pack_levels(levels: Array, bits: int) -> Array:
    """Whole numbers below 2^bits, 8/bits to a byte, the first in the low bits."""
    per_byte = 8 // bits
    padded = np.zeros(-(-levels.size // per_byte) * per_byte, np.uint8)
    padded[: levels.size] = levels
    lanes = padded.reshape(-1, per_byte)
    packed = np.zeros(lanes.shape[0], np.uint8)
    for lane in range(per_byte):
        packed |= lanes[:, lane] << np.uint8(lane * bits)
    return packed


def unpack_levels(packed: Array, bits: int, num: int) -> Array:
    """The whole numbers that `pack_levels` packed (uint8)."""
    per_byte = 8 // bits
    lanes = np.empty((packed.size, per_byte), np.uint8)
    for lane in range(per_byte):
        lanes[:, lane] = (packed >> np.uint8(lane * bits)) & np.uint8(2**bits - 1)
    levels: Array = lanes.reshape(-1)[:num]
    return levels
