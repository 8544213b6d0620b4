"""All benchmarks by name."""

from dist_ml.bench import allreduce, collectives, memory, reproduce, selection, step
from dist_ml.bench.bench import Bench, Part

BENCHES: dict[str, Bench] = {
    "reproduce": reproduce.BENCH,
    "step": step.BENCH,
    "collectives": collectives.BENCH,
    "allreduce": allreduce.BENCH,
    "memory": memory.BENCH,
    "selection": selection.BENCH,
}

PARTS: dict[str, Part] = {name: part for bench in BENCHES.values() for name, part in bench.parts.items()}
