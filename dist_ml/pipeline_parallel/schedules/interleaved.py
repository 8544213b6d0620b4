"""Interleaved 1F1B: each rank holds several stages, D apart, so that the pipe fills faster.

Source: Narayanan et al., "Efficient large-scale language model training on GPU clusters using
Megatron-LM", SC 2021, section 2.2.
"""

from dist_ml.pipeline_parallel.schedule import Action, Schedule, one_pipe
from dist_ml.pipeline_parallel.schedules.request import Request, multiples, require


def interleaved(request: Request) -> Schedule:
    """Stage c D + r on rank r, for `chunks` values of c. Bubble (D-1)/(vN+D-1), v times the words.

    Micro-batches go through a chunk in groups of D, so N must be a multiple of D.
    """
    ranks, microbatches, chunks = request.ranks, request.microbatches, request.chunks
    require(chunks >= 1, "interleaved", "at least one stage a rank", f"chunks={chunks}", "use 2")
    require(
        microbatches % ranks == 0,
        "interleaved",
        f"a multiple of the {ranks} ranks as micro-batches",
        str(microbatches),
        multiples(microbatches, ranks),
    )
    orders = [_order(rank, ranks, microbatches, chunks) for rank in range(ranks)]
    places = [stage % ranks for stage in range(ranks * chunks)]
    return one_pipe("interleaved", orders, places, microbatches)


def _order(rank: int, ranks: int, microbatches: int, chunks: int) -> list[Action]:
    total = microbatches * chunks

    def forward(i: int) -> Action:
        return Action(i % (chunks * ranks) // ranks * ranks + rank, "F", _microbatch(i))

    def backward(i: int) -> Action:
        chunk = chunks - 1 - i % (chunks * ranks) // ranks
        return Action(chunk * ranks + rank, "B", _microbatch(i))

    def _microbatch(i: int) -> int:
        return i // (chunks * ranks) * ranks + i % ranks

    warmup = min(2 * (ranks - rank - 1) + (chunks - 1) * ranks, total)
    actions = [forward(i) for i in range(warmup)]
    for i in range(warmup, total):
        actions += [forward(i), backward(i - warmup)]
    return actions + [backward(i) for i in range(total - warmup, total)]
