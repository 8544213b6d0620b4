"""`dist-ml bench torch_backend`: torch's own DDP and FSDP2 over our backend, against gloo and our
trainer.

On one node a step of each; in the emulated network DDP's, where links are slow also with our top-k
as its communication hook. All train one model in the same processes, in turn.
"""

from dataclasses import dataclass
from typing import Any

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Result, milliseconds
from dist_ml.bench.torch_backend_part import (
    DDP,
    DDP_GLOO,
    FSDP2,
    FSDP2_GLOO,
    SPARSE,
    TRAINER,
    measure,
)
from dist_ml.bench.worlds import Worlds
from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.measure.compare import ratio

SLOW = "100mbit"  # links at which top-k is tried
NODE_LIMITS = ((DDP, DDP_GLOO, 0.65), (DDP, TRAINER, 1.10), (FSDP2, FSDP2_GLOO, 0.8))
_MOST_OVER_GLOO, _LEAST_TIMES, _MOST_APART = 1.0, 8.0, 1e-6


@dataclass(frozen=True)
class TorchBackendBench:
    """What to train, where."""

    network: str  # node, or the rate of the emulated network's links as tc writes it: 1gbit
    mpi: str
    ranks: int  # in the emulated network: hosts, one rank each
    widths: tuple[int, ...]  # of the MLP, features and classes included
    batch: int  # samples a rank
    density: float  # of top-k
    rounds: int  # of alternation
    steps: int  # a round


def run(config: TorchBackendBench, worlds: Worlds) -> Result:
    if config.network == "node":
        candidates = (TRAINER, DDP, DDP_GLOO, FSDP2, FSDP2_GLOO)
        return _result(config, _measured(config, worlds, candidates, None), NODE_LIMITS)
    sparse = (SPARSE,) if config.network == SLOW else ()
    with worlds.network(config.ranks, config.network) as network:
        found = _measured(config, worlds, (DDP, DDP_GLOO, *sparse), network)
    limits = () if config.network == SLOW else ((DDP, DDP_GLOO, _MOST_OVER_GLOO),)
    return _result(config, found, limits)


def _result(
    config: TorchBackendBench, found: dict[str, Any], limits: tuple[tuple[str, str, float], ...]
) -> Result:
    seconds, where = found["seconds"], f"{config.network}, {config.ranks} ranks"
    records = [
        {"network": config.network, "ranks": config.ranks, "loop": name, **milliseconds(values)}
        for name, values in seconds.items()
    ]
    checks = [
        Check(f"{name} over {other}, {where}", ratio(seconds[name], seconds[other]).median,
              limit, "lower")
        for name, other, limit in limits
    ]  # fmt: skip
    if SPARSE in seconds:
        times = ratio(seconds[DDP_GLOO], seconds[SPARSE]).median
        checks.append(Check(f"{DDP_GLOO} over {SPARSE}, {where}", times, _LEAST_TIMES, "higher"))
    checks += [
        Check(f"losses of {name} from gloo's, {where}", apart, _MOST_APART, "lower")
        for name, apart in found["apart"].items()
    ]
    return Result("torch_backend", records, checks)


def _measured(
    config: TorchBackendBench,
    worlds: Worlds,
    candidates: tuple[str, ...],
    network: EmulatedNetwork | None,
) -> dict[str, Any]:
    interface = {} if network is None else {"GLOO_SOCKET_IFNAME": "eth0"}
    found = worlds.measure(
        "torch_backend",
        {
            "widths": config.widths,
            "batch": config.batch,
            "density": config.density,
            "candidates": candidates,
            "rounds": config.rounds,
            "steps": config.steps,
        },
        ranks=config.ranks,
        mpi=config.mpi,
        network=network,
        environment={"OMP_NUM_THREADS": "1", **interface},
    )
    return dict(found)


BENCH = Bench(
    "torch's DDP and FSDP2 over our backend, against gloo and our trainer",
    TorchBackendBench,
    run,
    {"torch_backend": measure},
    ranks=2,
)
