"""The configuration of one distributed matrix product."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from dist_ml.errors import ConfigError

# The largest finite number of each dtype; A, B and C are random in [-1, 1).
_LARGEST = {"fp32": 3.4028234663852886e38, "fp64": 1.7976931348623157e308, "bf16": 3.3895e38}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class GemmConfig:
    """C = alpha op(A) op(B) + beta C, with A and B filled at random: what `configs/gemm.yaml`
    composes.
    """

    m: int  # rows of op(A) and of C
    n: int  # columns of op(B) and of C
    k: int  # columns of op(A), rows of op(B)
    ranks: int | None  # to plan for; null: as many as were started (1 when planning)
    algorithm: str  # of gemm.family.GEMMS, or auto: the one with the fewest predicted seconds
    dtype: Literal["fp32", "fp64", "bf16"]  # of A, B and C; bf16 is summed in fp32
    memory: (
        int | str | None
    )  # bytes, or 512MiB and the like, that a rank may use besides its shards; null: no limit
    grid: tuple[int, ...] | None  # ranks along m, n and k; null: the planner chooses
    panel: int | None  # width along k of what is gathered at a time; null: the planner chooses
    replication: int | None  # layers of summa_25d; null: the planner chooses
    transpose_a: bool  # A is stored k x m
    transpose_b: bool  # B is stored n x k
    alpha: float  # factor of the product
    beta: float  # factor of what C held before
    kernel: str  # of the local products: auto, torch, numpy, openblas-…, or a loop to learn from
    seed: int  # of the matrices' elements
    repeats: int  # timed multiplications; the fastest counts
    rank_gflops: float  # predicted seconds: what one rank computes in a second, in 1e9 operations
    link_gbytes: float  # predicted seconds: what one rank receives in a second, in 1e9 bytes
    link_microseconds: float  # predicted seconds: the latency of a message

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("ranks", "panel", "replication", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        self._check_numbers()
        if self.grid is not None and len(self.grid) != 3:
            raise ConfigError(
                f"grid={list(self.grid)} must have three sides: ranks along m, n and k, such as "
                "[2,2,1]"
            )
        if self.memory_bytes is not None and self.memory_bytes < 0:
            raise ConfigError(f"memory={self.memory} must be at least 0")

    def _check_numbers(self) -> None:
        for name in ("alpha", "beta", "rank_gflops", "link_gbytes", "link_microseconds"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)} must be a finite number")
        for name in ("rank_gflops", "link_gbytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.link_microseconds < 0:
            raise ConfigError(f"link_microseconds={self.link_microseconds} must be at least 0")
        if abs(self.alpha) > (_LARGEST[self.dtype] - abs(self.beta)) / max(1, self.k):
            raise ConfigError(
                f"alpha={self.alpha}, beta={self.beta} and k={self.k} can exceed the largest "
                f"{self.dtype} number, {_LARGEST[self.dtype]:.4g}; choose smaller factors"
            )

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes."""
        if self.memory is None or isinstance(self.memory, int):
            return self.memory
        spelled = re.fullmatch(r"\s*([\d.]+)\s*([kmg]i?)?b?\s*", self.memory.lower())
        try:
            assert spelled is not None
            return int(float(spelled[1]) * _UNITS[spelled[2] or ""])
        except (AssertionError, ValueError, OverflowError):
            raise ConfigError(
                f"memory={self.memory} is no size; write bytes, or a number with a unit, such as "
                "512MiB"
            ) from None
