"""Our formulas against figures that others have published."""

from math import isclose
from typing import NamedTuple

import pytest

from dist_ml.networks.transformer_memory import (
    Recompute,
    kept_bytes,
    layer_flops,
    state_bytes,
)
from dist_ml.networks.volumes import Split, TransformerSizes
from dist_ml.pipeline_parallel.dry_run import Costs, dry_run
from dist_ml.pipeline_parallel.peaks import memory
from dist_ml.pipeline_parallel.proof import prove
from dist_ml.pipeline_parallel.schedules.family import make, unproved
from dist_ml.pipeline_parallel.schedules.request import Request

GIB = 1024**3
MODES = {
    "none": Recompute(),
    "seq": Recompute(cut=True),
    "sel": Recompute(scores=True),
    "seqsel": Recompute(scores=True, cut=True),
    "full": Recompute(layers=True),
}


class Published(NamedTuple):
    """One model of Korthikanti et al. (arXiv 2205.05198): table 3, and what figures 1 and 7 and
    table 5 say, by the numbers in Calculon's validation (calculon-ai/calculon, Apache 2.0,
    calculon/llm/validation.py and validation/seqsel/*.json).
    """

    model: TransformerSizes
    heads: int
    split: Split
    chunks: int  # stages a rank of the interleaved schedule
    state_gib: float
    kept_gib: dict[str, float]
    kept_percent: dict[str, float]
    seconds: dict[str, float]


MEGATRON = {
    "22B": Published(
        TransformerSizes(48, 6144, 2048), 64, Split(1, 1, 8, 1, 4), 1, 45.5625,
        {"none": 59.25, "seqsel": 9.5625},
        {"seq": 66.84, "sel": 49.42, "seqsel": 16.18, "full": 7.64}, {"full": 1.42, "seqsel": 1.10},
    ),
    "175B": Published(
        TransformerSizes(96, 12_288, 2048), 96, Split(1, 8, 8, 64), 3, 45.5625,
        {"none": 66.84375, "seqsel": 12.3515625},
        {"seq": 62.04, "sel": 56.53, "seqsel": 18.49, "full": 8.71},
        {"full": 18.13, "seqsel": 13.75},
    ),
    "530B": Published(
        TransformerSizes(105, 20_480, 2048), 128, Split(1, 35, 8, 280), 3, 31.640625,
        {"none": 114.0234375, "seqsel": 23.076171875},
        {"seq": 58.31, "sel": 62.04, "seqsel": 20.27, "full": 9.42},
        {"full": 49.05, "seqsel": 37.83},
    ),
    "1T": Published(
        TransformerSizes(128, 25_600, 2048), 160, Split(1, 64, 8, 512), 1, 32.958984375,
        {"none": 131.25, "seqsel": 26.5625},
        {"seq": 58.31, "sel": 62.04, "seqsel": 20.27, "full": 9.42},
        {"full": 94.42, "seqsel": 71.49},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEGATRON)
def test_memory_of_megatron_models(name: str) -> None:
    """Bytes by the formulas, chunks under way by our schedules: the published GiB, exactly."""
    model, heads, split, chunks, state, kept, percent, _ = MEGATRON[name]
    assert state_bytes(model, split) / GIB == state
    # as many micro-batches as fill the pipe: more change nothing
    schedule = unproved(
        "interleaved" if chunks > 1 else "one_f_one_b",
        Request(split.pipeline, 3 * split.pipeline, chunks=chunks),
    )
    layers = memory(schedule).activations[0] * model.layers // (split.pipeline * chunks)
    for mode, gib in kept.items():
        assert layers * kept_bytes(model, heads, split, MODES[mode]) / GIB == gib, mode
    none = kept_bytes(model, heads, split, MODES["none"])
    for mode, share in percent.items():
        found = 100 * kept_bytes(model, heads, split, MODES[mode]) / none
        assert isclose(found, share, rel_tol=0.015), mode


@pytest.mark.parametrize("name", MEGATRON)
def test_what_recomputing_layers_costs(name: str) -> None:
    """Seconds of a step with whole layers computed again, over those with scores alone."""
    published = MEGATRON[name]
    model, seconds = published.model, published.seconds
    predicted = layer_flops(model, MODES["full"]) / layer_flops(model, MODES["seqsel"])
    assert isclose(predicted, seconds["full"] / seconds["seqsel"], rel_tol=0.03)


@pytest.mark.parametrize(("p", "m"), [(4, 12), (8, 24), (8, 64)])
def test_table_of_zero_bubble(p: int, m: int) -> None:
    """Of sail-sg/zero-bubble-pipeline-parallelism's README, F = B = W: bubble rates, activations
    and messages over those of 1F1B. Rates are of the longest span of a rank.
    """
    rate = (p - 1) / (m + p - 1)
    table = {
        "one_f_one_b": (rate, 1, 1),
        "zb_h1": (rate / 3, 1, 1),
        "zb_h2": (0.0, 2, 1),
        "zb_v": (0.0, 1, 2),
    }
    base = prove(make("one_f_one_b", Request(p, m)))
    for name, (bubble, activations, messages) in table.items():
        schedule = make(name, Request(p, m))
        proof, stages = prove(schedule), schedule.num_stages // p
        unit = 1.0 / stages
        span = dry_run(schedule, Costs.uniform(schedule.num_stages, unit, 2 * unit)).span
        if name == "zb_h1":  # B/3 of 1F1B's time, whose makespan is 3 (m + p - 1)
            assert span - 3 * m == pytest.approx(bubble * 3 * (m + p - 1)), name
        else:
            assert 1 - 3 * m / span == pytest.approx(bubble), name
        held = max(proof.memory.activations) / stages
        assert held == pytest.approx(activations * p, abs=1), name
        assert max(proof.messages) == messages * max(base.messages), name


@pytest.mark.parametrize("ranks", [4, 8])
def test_table_of_dual_pipe(ranks: int) -> None:
    """Of deepseek-ai/DualPipe's README, a backward of B with W in it: idle time and activations.
    DualPipe's own row is of two copies of the weights; cut in half, as here, a rank has two of 2
    PP stages, each half of one of theirs.
    """
    f, b, w, m = 1.0, 2.0, 1.0, 3 * ranks
    for name, idle, held in (
        ("one_f_one_b", (ranks - 1) * (f + b), ranks),
        ("zb_h1", (ranks - 1) * (f + b - 2 * w), ranks),
        ("dualpipe_v", (ranks - 1) * (f + b + b - 3 * w), 2 * ranks + 1),
    ):
        schedule = make(name, Request(ranks, m))
        stages = schedule.num_stages // ranks
        timeline = dry_run(schedule, Costs.uniform(schedule.num_stages, f, b))
        assert timeline.makespan - stages * m * (f + b) <= idle + 1e-9, name
        assert max(memory(schedule).activations) == held, name
