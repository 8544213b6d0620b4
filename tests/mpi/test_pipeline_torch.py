"""Torch runs our schedules: `torch.distributed.pipelining` over gloo, on the ranks of MPI."""

from pathlib import Path

import pytest
import torch
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules as theirs

from dist_ml.bench.candidates import join_gloo
from dist_ml.bench.pipeline_torch_part import DenseModel
from dist_ml.comm.communicator import Communicator
from dist_ml.pipeline_parallel.schedules import csv_file, family
from dist_ml.pipeline_parallel.schedules.request import Request

WIDTH, CLASSES, MICROBATCHES = 6, 6, 12  # a multiple of 2, 3 and 4 ranks


@pytest.mark.parametrize("name", ["zb_v", "interleaved", "dualpipe_v"])
def test_gradients_are_those_of_the_whole_model(
    world: Communicator, name: str, tmp_path: Path
) -> None:
    if world.size < 2:
        pytest.skip("a pipeline has at least two ranks")
    if not torch.distributed.is_initialized():
        join_gloo(world)
    schedule = family.make(name, Request(world.size, MICROBATCHES))
    file = tmp_path / f"{name}-{world.rank}.csv"
    file.write_text(csv_file.write_csv(schedule))
    torch.manual_seed(5)
    whole = DenseModel(schedule.num_stages, WIDTH)
    piped = DenseModel(schedule.num_stages, WIDTH)
    piped.load_state_dict(whole.state_dict())
    inputs = torch.randn(2 * MICROBATCHES, WIDTH)
    targets = torch.randint(0, CLASSES, (2 * MICROBATCHES,))
    loss_of = torch.nn.functional.cross_entropy
    loss_of(whole(inputs), targets).backward()  # type: ignore[no-untyped-call]

    own = schedule.stages_of(world.rank)
    stages = [
        pipelining.PipelineStage(
            piped.blocks()[s].module, s, schedule.num_stages, torch.device("cpu")
        )
        for s in own
    ]
    runtime = theirs._PipelineScheduleRuntime(stages, MICROBATCHES, loss_fn=loss_of)
    runtime._load_csv(str(file), format="compute_only")
    arguments = (inputs,) if 0 in own else ()
    more = {"target": targets} if schedule.num_stages - 1 in own else {}
    runtime.step(*arguments, **more)
    for s in own:
        for theirs_, ours in zip(
            piped.blocks()[s].module.parameters(),
            whole.blocks()[s].module.parameters(),
            strict=True,
        ):
            torch.testing.assert_close(theirs_.grad, ours.grad)
