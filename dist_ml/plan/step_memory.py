"""What a rank of a planned step holds at its peak, in bytes, by what it is for."""

from dist_ml.plan.step_plan import StepPlan

_OPTIMIZER_STATES = {"adamw": 2}  # numbers a parameter; sgd: 1 with momentum


def most_bytes(plan: StepPlan) -> dict[str, int]:
    """Of the rank of the pipeline that holds most."""
    held = [rank_bytes(plan, rank) for rank in range(plan.sizes["pipeline"])]
    return max(held, key=lambda parts: sum(parts.values()))


def least_bytes(plan: StepPlan) -> int:
    """Of that rank at least, whatever the schedule: with one micro-batch under way."""
    ranks = range(plan.sizes["pipeline"])
    return max(sum(_bytes_with(plan, rank, 1).values()) for rank in ranks)


def rank_bytes(plan: StepPlan, rank: int = 0) -> dict[str, int]:
    """Of a rank of the pipeline. Activations are those of all micro-batches that are under way at
    once by the schedule; `working`: the gradient of an activation, and what the largest operator
    takes and makes.
    """
    return _bytes_with(plan, rank, plan.activations[rank])


def _bytes_with(plan: StepPlan, rank: int, alive: int) -> dict[str, int]:
    config, n = plan.config, plan.num_parameters(rank)
    stages, data = plan.stages_of(rank), plan.sizes["data"]
    sharded = {"zero1": ("optimizer",), "zero2": ("optimizer", "gradients")}
    divided = sharded.get(config.data_parallel.name, ())
    states = _OPTIMIZER_STATES.get(config.optimizer.name, int(config.optimizer.momentum > 0))
    if config.data_parallel.name in ("periodic", "daso"):
        divided = ()
    kept = max(stage.kept_bytes for stage in stages)
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
    largest = max(stage.largest_bytes for stage in stages)
    return {**held, "activations": activations + plan.batch_bytes * alive, "working": largest}
