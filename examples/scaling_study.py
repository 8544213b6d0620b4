"""How a loop of a user's own scales: it runs on each number of ranks, and a table says how much
faster, with Amdahl's law fitted.

python examples/scaling_study.py 1 2 4    without mpiexec: it starts the ranks itself
"""

import json
import sys
import time

import torch

import dist_ml
from dist_ml.launch import mpiexec
from dist_ml.measure.scaling import AMDAHL, fit

BATCH, STEPS = 64, 10  # of all ranks together


def measure() -> None:
    """The loop, on the ranks that were started: rank 0 prints seconds a step."""
    mesh = dist_ml.init()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(512, 512), torch.nn.ReLU()] * 3
    model = dist_ml.DataParallel(torch.nn.Sequential(*layers), mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(BATCH // mesh.world.size, 512)
    for step in range(STEPS + 2):
        if step == 2:  # the first ones make connections
            mesh.world.barrier()
            begin = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    if mesh.world.rank == 0:
        print(json.dumps((time.perf_counter() - begin) / STEPS))


def study(numbers: list[int]) -> None:
    """The table."""
    rates = {}
    for ranks in numbers:
        program, one_core = [sys.executable, __file__, "measure"], {"OMP_NUM_THREADS": "1"}
        done = mpiexec.run(
            program, ranks, time_limit_seconds=120, capture=True, environment=one_core
        )
        if done.returncode:
            sys.exit(done.stderr)
        rates[ranks] = BATCH / json.loads(done.stdout.splitlines()[-1])
        speed_up = rates[ranks] / rates[numbers[0]]
        efficiency = speed_up * numbers[0] / ranks
        print(f"{ranks} ranks: {rates[ranks]:.0f} samples a second, {speed_up:.2f} x, "
              f"efficiency {efficiency:.2f}")  # fmt: skip
    if len(rates) > 1:
        print(f"{AMDAHL}: {fit(AMDAHL, rates).sigma:.2f} of the work is not shared out")


if sys.argv[1:] == ["measure"]:
    measure()
else:
    study([int(each) for each in sys.argv[1:]] or [1, 2])
