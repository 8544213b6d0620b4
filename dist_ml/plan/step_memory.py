"""What a rank of a planned step holds at its peak, in bytes, by what it is for."""

from dist_ml.pipeline_parallel.peaks import memory
from dist_ml.plan.step_plan import StepPlan

_OPTIMIZER_STATES = {"adamw": 2}  # numbers a parameter; sgd: 1 with momentum


def rank_bytes(plan: StepPlan, rank: int = 0) -> dict[str, int]:
    """Of a rank of the pipeline. Activations are those of all micro-batches that are under way at
    once by the schedule; `working`: the gradient of an activation, and what the largest operator
    takes and makes.
    """
    config, n = plan.config, plan.num_parameters(rank)
    stages, data = plan.stages_of(rank), plan.sizes["data"]
    sharded = {"zero1": ("optimizer",), "zero2": ("optimizer", "gradients")}
    divided = sharded.get(config.data_parallel.name, ())
    states = _OPTIMIZER_STATES.get(config.optimizer.name, int(config.optimizer.momentum > 0))
    if config.data_parallel.name in ("periodic", "daso"):
        divided = ()
    kept = max(stage.kept_bytes for stage in stages)
    alive = memory(plan.schedule).activations[rank]
    if config.pipeline.recompute and plan.sizes["pipeline"] > 1:
        inputs = max(stage.blocks[0].output_bytes for stage in stages)
        activations = kept + alive * inputs
    else:
        activations = alive * kept
    held = {
        "parameters": plan.schedule.weight_versions * n * plan.word_bytes,
        "gradients": n * plan.word_bytes,
        "optimizer": states * n * plan.word_bytes,
    }
    for name in divided:
        held[name] = -(-held[name] // data)
    largest = max(block.largest_bytes for stage in stages for block in stage.blocks)
    return {**held, "activations": activations + plan.batch_bytes * alive, "working": largest}
