"""The ranks' part of `dist-ml bench pipeline_torch`: one model's stages under our executor and
under torch's, in the same processes, in turn; and what our executor costs by itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed import pipelining
from torch.nn.functional import cross_entropy

from dist_ml.bench.candidates import join_gloo
from dist_ml.bench.sleeping_model import WIDTH, SleepingModel
from dist_ml.comm.communicator import Communicator
from dist_ml.datasets.dataset import Batch
from dist_ml.measure.compare import compare
from dist_ml.measure.timer import Phases
from dist_ml.models.blocks import Block, BlockModel, chain
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.executor import Executor
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.pipeline_parallel.schedule import Schedule, one_stage
from dist_ml.pipeline_parallel.schedules import family
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.pipeline_parallel.stage_graph import cut_into_stages, output_shapes
from dist_ml.pipeline_parallel.stage_runner import StageRunner

OURS, TORCH, LOOP = "ours", "torch", "loop"
TORCH_SCHEDULES = {
    "gpipe": pipelining.ScheduleGPipe,
    "one_f_one_b": pipelining.Schedule1F1B,
}
_CLASSES = 10


class DenseModel(BlockModel):
    """`num_blocks` blocks of two linear layers and activations that overwrite nothing."""

    def __init__(self, num_blocks: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            for _ in range(num_blocks)
        )
        self._blocks = chain([(f"layers.{i}", layer) for i, layer in enumerate(self.layers)])

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        for layer in block.module.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


class FixedBatch:
    """One batch, cut into micro-batches; the loss is the mean over the batch."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor, num_microbatches: int) -> None:
        self.inputs, self.targets = inputs, targets
        self._parts = list(
            zip(
                inputs.tensor_split(num_microbatches),
                targets.tensor_split(num_microbatches),
                strict=True,
            )
        )
        self.sizes = [len(part) for part, _ in self._parts]

    def load(self, m: int) -> Batch:
        inputs, targets = self._parts[m]
        return Batch(inputs, targets, np.zeros(0, np.int64), len(inputs))

    def enter(self, m: int) -> None:
        """No layer draws random numbers."""

    def loss(self, outputs: torch.Tensor, batch: Batch, count: bool) -> torch.Tensor:  # noqa: ARG002
        summed = cross_entropy(outputs, batch.targets, reduction="sum")
        return summed / len(self.inputs)


def model_of(arguments: Mapping[str, Any], num_blocks: int) -> BlockModel:
    """Sleeping blocks where `seconds` are given, else dense ones."""
    if arguments["seconds"]:
        return SleepingModel(num_blocks, tuple(arguments["seconds"]))
    return DenseModel(num_blocks, arguments["width"])


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of forward and backward passes of a step, by candidate and round."""
    microbatches = arguments["microbatches"]
    width = WIDTH if arguments["seconds"] else arguments["width"]
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(arguments["batch"], width, generator=generator)
    targets = torch.randint(0, min(width, _CLASSES), (arguments["batch"],), generator=generator)
    batch = FixedBatch(inputs, targets, microbatches)
    schedule = family.make(arguments["schedule"], Request(comm.size, microbatches))
    calls = {
        OURS: our_step(comm, schedule, model_of(arguments, comm.size), batch),
        TORCH: torch_step(comm, arguments, model_of(arguments, comm.size), batch),
    }
    return compare(comm, calls, arguments["rounds"], repeats=arguments["steps"], warm_up_rounds=2)


def our_step(
    comm: Communicator, schedule: Schedule, model: BlockModel, batch: FixedBatch
) -> Callable[[], None]:
    """A step by our executor: gradients of this rank's stage in `.grad`."""
    stages = cut_into_stages(model, [Range(s, s + 1) for s in range(schedule.num_stages)])
    shapes = output_shapes(model.to("meta"), batch.inputs[:1])
    own = [block for s in schedule.stages_of(comm.rank) for block in stages[s].blocks]
    model.materialize(own)
    messages = StageMessages(comm, schedule, stages, shapes, torch.float32)
    actions = schedule.actions[comm.rank]
    runner = StageRunner(stages, actions, messages, batch, Phases())
    executor = Executor(actions, runner.methods)
    parameters = [parameter for block in own for parameter in block.module.parameters()]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        runner.begin(batch.sizes)
        executor.run()
        runner.end()

    return step


def torch_step(
    comm: Communicator, arguments: Mapping[str, Any], model: BlockModel, batch: FixedBatch
) -> Callable[[], None]:
    """The same by `torch.distributed.pipelining` over gloo."""
    if not torch.distributed.is_initialized():
        join_gloo(comm)
    module = model.blocks()[comm.rank].module
    stage = pipelining.PipelineStage(module, comm.rank, comm.size, torch.device("cpu"))
    made = TORCH_SCHEDULES[arguments["schedule"]](
        stage, arguments["microbatches"], loss_fn=cross_entropy
    )

    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        if comm.rank == 0:
            made.step(batch.inputs)
        elif comm.rank == comm.size - 1:
            made.step(target=batch.targets, losses=[], return_outputs=False)
        else:
            made.step()

    return step


def measure_executor(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step of one stage on one rank by the executor and by a loop, and the number of
    actions in it.
    """
    microbatches, width, samples = (arguments[key] for key in ("microbatches", "width", "batch"))
    inputs = torch.zeros(samples, width)
    batch = FixedBatch(inputs, torch.zeros(samples, dtype=torch.int64), microbatches)
    model = DenseModel(1, width)
    schedule = one_stage(microbatches)
    ours = our_step(comm, schedule, model, batch)
    parameters = list(model.parameters())

    def loop() -> None:
        for parameter in parameters:
            parameter.grad = None
        for m in range(microbatches):
            part = batch.load(m)
            batch.loss(model(part.inputs), part, True).backward()  # type: ignore[no-untyped-call]

    seconds = compare(comm, {OURS: ours, LOOP: loop}, arguments["rounds"], repeats=5)
    return {"seconds": seconds, "actions": len(schedule.actions[0])}
