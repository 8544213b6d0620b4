"""What is multiplied, on how many ranks, with how much memory: what every planner starts from."""

from dataclasses import dataclass

from dist_ml.errors import ConfigError

# A search of grids looks at all pairs of sides at once, in 64-bit integers: beyond these it would
# take minutes and gigabytes, or overflow.
MAX_RANKS = 1 << 20
MAX_WORDS = 1 << 56
MAX_BYTES = 1 << 62


@dataclass(frozen=True)
class ProductShape:
    """One product to plan: sizes of op(A) (m x k) and op(B) (k x n), ranks, bytes a word, and the
    memory limit.

    `memory` is the bytes that a rank may hold besides its shards of A, B and C (None: no limit).
    `sum_bytes` is the word size that products are summed in: 4 for bfloat16. `ConfigError` for
    sizes below 0 or beyond what can be planned.
    """

    m: int
    n: int
    k: int
    ranks: int
    word_bytes: int = 4
    sum_bytes: int = 4
    memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
            if getattr(self, name) > MAX_WORDS:
                raise ConfigError(f"{name}={getattr(self, name)} must be at most {MAX_WORDS}")
        if self.ranks < 1:
            raise ConfigError(f"ranks={self.ranks} must be at least 1")
        if self.memory is not None and self.memory < 0:
            raise ConfigError(f"memory={self.memory} bytes must be 0 or more, or null for no limit")
        self._check_upper_limits()

    def _check_upper_limits(self) -> None:
        m, n, k = self.sides
        for name, rows, cols in (("A", m, k), ("B", k, n), ("C", m, n)):
            if rows * cols > MAX_WORDS:
                raise ConfigError(
                    f"{name} of {rows} x {cols} would have more than the {MAX_WORDS} words that "
                    "can be planned; choose smaller sizes"
                )
        if self.ranks > MAX_RANKS:
            raise ConfigError(f"ranks={self.ranks} is more than can be planned, {MAX_RANKS}")
        if self.memory is not None and self.memory > MAX_BYTES:
            raise ConfigError(
                f"memory={self.memory} is more bytes than an address has, {MAX_BYTES}; give less, "
                "or null for no limit"
            )

    @property
    def sides(self) -> tuple[int, int, int]:
        """The dimensions as grids see them: a dimension of 0 still has one block."""
        return max(1, self.m), max(1, self.n), max(1, self.k)

    @property
    def half(self) -> bool:
        """Are the operands in half precision, so that they are widened to be summed?"""
        return self.sum_bytes != self.word_bytes
