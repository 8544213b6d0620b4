"""Local steps on two hosts: whether a step is taken is the same everywhere, though only the host
that holds the bad sample sees that its gradient is not finite.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dist_ml.launch import mpiexec
from dist_ml.launch.emulated_network import EmulatedNetwork, missing
from dist_ml.launch.job import Completed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
HOSTS, RANKS, EPOCHS, BATCH = 2, 4, 3, 16
NUM_SAMPLES = 64
# Every rank tells which steps it left out, and the sums of its parameters; rank 0 prints them.
PROGRAM = """
import json, sys
from dist_ml.cli import arguments, compose, ranks
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.train.build import build_mesh, build_trainer

def body(world):
    request = arguments.parse(sys.argv[1:], "dist-ml train", "train")
    config = from_mapping(TrainConfig, compose.composed(request))
    trainer = build_trainer(config, build_mesh(config, world))
    steps = [step for epoch in range(config.epochs) for step in trainer.epoch(epoch)]
    trainer.close()
    flat = [float(p.detach().double().sum()) for p in trainer.model.parameters()]
    skipped = [step.number for step in steps if step.skipped]
    told = world.allgather_objects((skipped, flat))
    if world.rank == 0:
        print(json.dumps(told), flush=True)
    return 0

sys.exit(ranks.run_on_ranks(body))
"""


@pytest.fixture(scope="module")
def network() -> Iterator[EmulatedNetwork]:
    with EmulatedNetwork(HOSTS) as network:
        yield network


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """One of them is so large that its loss is finite, and the square of its gradient is not."""
    random = np.random.default_rng(0)
    x = random.standard_normal((NUM_SAMPLES, 6)).astype(np.float32)
    x[5] = 1e25
    y = random.integers(0, 3, NUM_SAMPLES)
    for name, array in (("train_x", x), ("train_y", y), ("test_x", x[6:]), ("test_y", y[6:])):
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def train(network: EmulatedNetwork, flavour: str, samples: Path, *overrides: str) -> Completed:
    settings = [f"data.path={samples}", f"epochs={EPOCHS}", f"batch_size={BATCH}",
                "data=arrays", "model.hidden=[8]", "clip_norm=0.01"]  # fmt: skip
    return mpiexec.run(
        [sys.executable, "-c", PROGRAM, *settings, *overrides],
        RANKS,
        flavour,
        network=network,
        capture=True,
        time_limit_seconds=60,
        environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )


AVERAGERS = [
    ["data_parallel=daso", "data_parallel.warmup_steps=2", "data_parallel.cooldown_steps=2"],
    ["data_parallel=periodic"],
]


@pytest.mark.parametrize("averager", AVERAGERS, ids=["daso", "periodic"])
def test_all_hosts_leave_out_the_same_steps(
    averager: list[str], flavour: str, network: EmulatedNetwork, samples: Path
) -> None:
    done = train(network, flavour, samples, *averager, "nonfinite=skip")
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    skipped = told[0][0]
    assert 1 <= len(skipped) <= EPOCHS  # the bad sample comes once an epoch
    assert [each for each, _ in told] == [skipped] * RANKS
    assert all(np.isfinite(sums).all() for _, sums in told)


@pytest.mark.parametrize("averager", AVERAGERS, ids=["daso", "periodic"])
def test_all_hosts_stop_together(
    averager: list[str], flavour: str, network: EmulatedNetwork, samples: Path
) -> None:
    done = train(network, flavour, samples, *averager)
    assert not done.timed_out, done.stacks
    assert done.returncode not in (0, 124)
    assert done.stderr.count("skip such steps with nonfinite=skip") == 1
    assert "Traceback" not in done.stderr
