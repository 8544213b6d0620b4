"""`dist-ml bench torch_backend`: what is made of its figures."""

from typing import Any

import pytest

from dist_ml.bench import torch_backend
from dist_ml.bench.torch_backend_part import (
    DDP,
    DDP_GLOO,
    FSDP2,
    FSDP2_GLOO,
    SPARSE,
    TRAINER,
)
from tests.unit.bench_worlds import GivenWorlds, bench_config, failed, only_finite

FINE = {TRAINER: 0.6, DDP: 0.6, DDP_GLOO: 1.0, FSDP2: 0.7, FSDP2_GLOO: 1.0, SPARSE: 0.1}


def misses(network: str, apart: float = 0.0, **seconds: float) -> list[str]:
    def found(_: int | None, arguments: dict[str, Any]) -> dict[str, Any]:
        names = arguments["candidates"]
        times = {**FINE, **seconds}
        differences = {DDP: apart} if DDP_GLOO in names else {}
        return {"seconds": {name: [times[name]] * 2 for name in names}, "apart": differences}

    worlds = GivenWorlds({"torch_backend": found})
    result = torch_backend.run(bench_config("torch_backend", f"network={network}"), worlds)
    only_finite(result)
    return [name.partition(",")[0] for name in failed(result.checks)]


@pytest.mark.parametrize("network", ["node", "1gbit", "100mbit"])
def test_slow_steps_and_losses_apart_are_found(network: str) -> None:
    assert misses(network) == []
    assert misses(network, apart=1e-5) == ["losses of ddp dist_ml from gloo's"]
    slow = {
        "node": ["ddp dist_ml over ddp gloo", "ddp dist_ml over trainer"],
        "1gbit": ["ddp dist_ml over ddp gloo"],
        "100mbit": [],
    }
    assert misses(network, **{DDP: 1.1}) == slow[network]


def test_a_slow_fsdp2_and_a_slow_top_k_are_found_where_they_are_tried() -> None:
    assert misses("node", **{FSDP2: 0.9}) == ["fsdp2 dist_ml over fsdp2 gloo"]
    assert misses("100mbit", **{SPARSE: 0.2}) == ["ddp gloo over ddp dist_ml"]
