"""All benchmarks by name."""

from dist_ml.bench import (
    allreduce,
    allreduce_words,
    checkpoint,
    collectives,
    daso,
    data_parallel,
    gemm,
    gemm_words,
    kernel,
    memory,
    models,
    operator_crossover,
    operator_step,
    operator_words,
    overlap,
    pipeline,
    pipeline_torch,
    reproduce,
    same_numbers,
    selection,
    sharded,
    sparse,
    sparse_accuracy,
    sparse_curve,
    sparse_scaling,
    step,
)
from dist_ml.bench.bench import Bench, Part

BENCHES: dict[str, Bench] = {
    "reproduce": reproduce.BENCH,
    "same_numbers": same_numbers.BENCH,
    "step": step.BENCH,
    "models": models.BENCH,
    "collectives": collectives.BENCH,
    "allreduce": allreduce.BENCH,
    "allreduce_words": allreduce_words.BENCH,
    "overlap": overlap.BENCH,
    "data_parallel": data_parallel.BENCH,
    "sharded": sharded.BENCH,
    "daso": daso.BENCH,
    "memory": memory.BENCH,
    "selection": selection.BENCH,
    "sparse": sparse.BENCH,
    "sparse_scaling": sparse_scaling.BENCH,
    "sparse_accuracy": sparse_accuracy.BENCH,
    "sparse_curve": sparse_curve.BENCH,
    "kernel": kernel.BENCH,
    "pipeline": pipeline.BENCH,
    "pipeline_torch": pipeline_torch.BENCH,
    "operator": operator_step.BENCH,
    "operator_words": operator_words.BENCH,
    "operator_crossover": operator_crossover.BENCH,
    "checkpoint": checkpoint.BENCH,
    "gemm": gemm.BENCH,
    "gemm_words": gemm_words.BENCH,
}

PARTS: dict[str, Part] = {
    name: part for bench in BENCHES.values() for name, part in bench.parts.items()
}
