"""Rotary positions: queries and keys turn with their position, so that their products depend on how
far apart they are.
"""

import torch

BASE = 10_000.0  # the slowest pair of features turns once in about 2 pi BASE positions


class Rotary:
    """Turns each pair of features (2i, 2i+1) of position p by p BASE^(-2i/d), as a complex number.

    Tables of all lengths are made once and shared by a model's layers.

    Source: Su, Lu, Pan, Murtadha, Wen, Liu, "RoFormer", arXiv 2104.09864, section 3.2.2.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int, torch.dtype, torch.device], torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [b, positions, ..., d], d even, in its own dtype."""
        exact = x.float() if x.dtype == torch.bfloat16 else x
        pairs = torch.view_as_complex(exact.view(*x.shape[:-1], x.shape[-1] // 2, 2))
        table = self._table(x.shape[1], pairs.shape[-1], pairs.dtype, x.device)
        table = table.view(len(table), *(1,) * (x.ndim - 3), -1)
        return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)

    def _table(
        self, length: int, num_pairs: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """exp(i p BASE^(-j / num_pairs)): [length, num_pairs], of angles in float64."""
        key = length, num_pairs, dtype, device
        table = self._tables.get(key)
        if table is None:
            steps = torch.arange(num_pairs, dtype=torch.float64, device=device) / num_pairs
            places = torch.arange(length, dtype=torch.float64, device=device)
            angles = torch.outer(places, BASE**-steps)
            table = torch.polar(torch.ones_like(angles), angles).to(dtype)
            self._tables[key] = table
        return table
