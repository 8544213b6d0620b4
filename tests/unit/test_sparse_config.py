"""What a sparse exchange can't do is refused, not left out."""

from typing import Any

import pytest

from dist_ml.config.sparse import SparseConfig
from dist_ml.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, "density=0.0 must be above 0"),
        ({"density": 1.5}, "density=1.5 must be above 0 and at most 1"),
        ({"densities": {"layers.0": float("nan")}}, "densities.layers.0=nan"),
        ({"clip_norm": 1.0, "overlap": 4}, "clip_norm=1.0 needs the whole gradient"),
        ({"momentum": 1.0}, "momentum=1.0 must be in"),
    ],
)
def test_rules_across_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseConfig(**changes)
