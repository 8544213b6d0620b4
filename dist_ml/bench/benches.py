"""All benchmarks by name."""

from dist_ml.bench import collectives, memory, reproduce, step
from dist_ml.bench.bench import Bench, Part

BENCHES: dict[str, Bench] = {
    "reproduce": reproduce.BENCH,
    "step": step.BENCH,
    "collectives": collectives.BENCH,
    "memory": memory.BENCH,
}

PARTS: dict[str, Part] = {name: part for bench in BENCHES.values() for name, part in bench.parts.items()}
