"""`dist-ml bench dataflow`: the bytes that it tells, its fused passes, what it makes of both."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional

from dist_ml import compiled
from dist_ml.bench import dataflow, layout_path
from dist_ml.bench.dataflow_part import layer_stretches
from dist_ml.bench.encoder_layer import EncoderLayer, LayerSizes
from dist_ml.errors import ConfigError
from dist_ml.plan.dataflow import stretches
from dist_ml.plan.operators import recorded, without_data
from tests.unit.bench_worlds import GivenWorlds, alone, bench_config, only_finite

BERT_LARGE = LayerSizes(8, 512, 16, 1024, 4096)
SMALL = LayerSizes(2, 5, 2, 8, 12)
needs_numba = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")


def test_contractions_move_the_words_that_a_hand_count_has() -> None:
    """B=8, L=512, H=16, I=1024, U=4096: 163.6 million words forward, biases beside them, and 112
    Gflop, of which nearly all are contractions.
    """
    forward, _ = layer_stretches(BERT_LARGE, 0.1)
    products = [stretch for stretch in forward if stretch.kind == "contraction"]
    biases = 3 * 1024 + 1024 + 4096 + 1024
    assert len(products) == 6
    assert sum(each.moved_bytes for each in products) / 4 - biases == pytest.approx(
        163.6e6, rel=1e-3
    )
    flops = sum(each.flops for each in products)
    assert flops == pytest.approx(112e9, rel=0.01)
    assert flops / sum(each.flops for each in forward) > 0.99


def test_recording_adds_nothing() -> None:
    """Autograd copies gradients that somebody else holds while it computes."""
    _, backward = layer_stretches(SMALL, 0.1)
    assert "copy" not in " ".join(stretch.name for stretch in backward)


def test_passes_between_contractions_have_to_move_what_enters_and_what_is_needed() -> None:
    with without_data():
        a, b = torch.empty(4, 8, requires_grad=True), torch.empty(8, 8, requires_grad=True)
        with recorded([a, b]) as there:
            y = ((a @ b).exp() + 1).relu() @ b
        (found,) = stretches([there.operators], [y])
    assert [each.kind for each in found] == ["contraction", "element-wise", "contraction"]
    part = 4 * 4 * 8  # bytes of each of the passes' tensors
    assert found[1].moved_bytes == 6 * part
    assert found[1].bound_bytes == 2 * part
    assert found[1].flops == 3 * 32
    assert found[0].bound_bytes == found[0].moved_bytes == 2 * part + 4 * 64


def test_what_a_later_pass_reads_has_to_be_written() -> None:
    with without_data():
        x = torch.empty(4, 8, requires_grad=True)
        with recorded([x]) as there:
            y = x.exp().sin()  # whose backward pass reads exp(x)
        with recorded([]) as back:
            y.backward(torch.empty_like(y))
        assert x.grad is not None
        ((forward,), (backward,)) = stretches([there.operators, back.operators], [y, x.grad])
    part = 4 * 4 * 8
    assert forward.bound_bytes == 3 * part
    assert backward.bound_bytes == 3 * part  # exp(x), the gradient that comes, the one that goes
    assert backward.moved_bytes > backward.bound_bytes


def masks(layer: Any, number: int, *shape: int) -> torch.Tensor:
    """What a dropout of the fused layer multiplies with."""
    from dist_ml.bench import fused_passes

    out = torch.empty(shape)
    for row, values in enumerate(out.view(-1, shape[-1])):
        fused_passes.factors(*layer.drop(number)[:1], row, *layer.drop(number)[1:], values.numpy())
    return out


@needs_numba
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_passes_are_torchs(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients, with the fused layer's own masks in torch's layer."""
    from dist_ml.bench.fused_layer import FusedEncoderLayer

    torch.manual_seed(0)
    b, s, heads, width, hidden = SMALL
    reference, fused = EncoderLayer(SMALL, dropout), FusedEncoderLayer(SMALL, dropout)
    fused.load_state_dict(reference.state_dict())
    drawn = [masks(fused, 0, b, heads, s, s), masks(fused, 2, b, s, width),
             masks(fused, 1, b, s, hidden), masks(fused, 3, b, s, width)]  # fmt: skip
    assert all((mask == 0).float().mean() == pytest.approx(dropout, abs=0.15) for mask in drawn)
    left = iter(drawn)
    monkeypatch.setattr(functional, "dropout", lambda x, _: x * next(left))
    found = []
    for layer in (reference, fused):
        x = torch.randn(b, s, width, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        y = layer(x)
        (y * torch.arange(width)).sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@needs_numba
def test_what_is_told() -> None:
    from dist_ml.bench.dataflow_part import measure

    config = bench_config("dataflow", "batch=2", "tokens=5", "heads=2", "width=8", "hidden=12",
                          "rounds=1")  # fmt: skip
    worlds = GivenWorlds({"dataflow": lambda _, arguments: alone(measure, arguments)})
    result = dataflow.run(config, worlds)
    only_finite(result)
    kinds = [row for row in result.records if "V100_time_%" in row]
    for column in ("flop_%", "moved_%", "time_%"):
        assert sum(row[column] for row in kinds) == pytest.approx(100)
    layers = {row["layer"]: row for row in result.records if "layer" in row}
    assert layers["fused"]["moved_MB"] < layers["torch"]["moved_MB"]
    assert 0 < layers["fused"]["saved_%"] < 100
    passes = {row["fused_pass"]: row["moved_MB"] for row in result.records if "fused_pass" in row}
    scores, hidden = 2 * 2 * 5 * 5, 2 * 5 * 12
    assert passes["softmax"] * 1e6 == pytest.approx(4 * 3 * scores)  # scores, shares, dropped
    assert passes["softmax_backward"] * 1e6 == pytest.approx(4 * 3 * scores)
    assert passes["relu_dropout"] * 1e6 == pytest.approx(4 * 2 * hidden)
    assert len(passes) == 6


@pytest.mark.parametrize("changed", ["heads=3", "dropout=1.0", "dropout=-0.1"])
def test_sizes_that_do_not_fit_are_refused(changed: str) -> None:
    with pytest.raises(ConfigError, match=changed.partition("=")[0]):
        bench_config("dataflow", changed)


def every_path(steps: Sequence[layout_path.Costs], changes: Sequence[float]) -> Iterator[float]:
    """Seconds of all choices of a pair of layouts for each step."""
    for chosen in itertools.product(*steps):
        ends = ["rows", *(given for _, given in chosen)]
        starts = [*(taken for taken, _ in chosen), "rows"]
        changed = sum(c for c, a, b in zip(changes, ends, starts, strict=True) if a != b)
        yield changed + sum(costs[each] for costs, each in zip(steps, chosen, strict=True))


def test_the_shortest_path_is_the_best_of_all() -> None:
    draw = random.Random(0)
    pairs = list(itertools.product(("rows", "columns"), repeat=2))
    for _ in range(20):
        steps = [{pair: draw.random() for pair in draw.sample(pairs, draw.randint(1, 4))}
                 for _ in range(4)]  # fmt: skip
        changes = [draw.random() / 2 for _ in range(5)]
        found = layout_path.shortest(steps, changes)
        assert found.seconds == pytest.approx(min(every_path(steps, changes)))
        assert all(pair in costs for pair, costs in zip(found.layouts, steps, strict=True))


def test_every_layout_of_a_step_gives_the_same() -> None:
    for step in layout_path.layer_steps(SMALL):
        shapes = {tuple(getattr(call(), "shape", ())) for call in step.calls.values()}
        assert len({tuple(sorted(shape)) for shape in shapes}) == 1
