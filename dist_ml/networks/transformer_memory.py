"""The bytes that a rank holds of a Transformer of any size, and what recomputing costs, in closed
form. Numbers have two bytes, masks of dropout one.

    kept by a layer and micro-batch      s b h (10 + 24/t + 5 a s / (h t))    a tokens, h width,
    inputs between shared layers cut     34/t in place of 10 + 24/t           a heads, t ranks
    attention's scores computed again    without 5 a s / (h t)                share the layer
    whole layers computed again          2 s b h: their inputs

Source: Korthikanti et al., "Reducing activation recomputation in large Transformer models", 2022
(arXiv 2205.05198), sections 4 and 5, appendix A.
"""

from typing import NamedTuple

from dist_ml.networks.volumes import Split, TransformerSizes

# Of a parameter: two bytes and its gradient's four, and of Adam's fp32 copy and two moments.
STATE_BYTES = 18


class Recompute(NamedTuple):
    """What is computed again in the backward pass, and whether ranks that share layers cut the
    activations between these, too.
    """

    scores: bool = False
    layers: bool = False
    cut: bool = False


def state_bytes(model: TransformerSizes, split: Split) -> float:
    """Parameters, gradients and the optimizer's numbers of a rank."""
    return STATE_BYTES * model.num_parameters / (split.pipeline * split.operator)


def kept_bytes(model: TransformerSizes, heads: int, split: Split, again: Recompute) -> float:
    """What one layer keeps of one micro-batch."""
    tokens, width, ranks = model.tokens, model.width, split.operator
    boundary = split.samples * tokens * width
    if again.layers:
        return 2.0 * boundary / (ranks if again.cut else 1)
    plain = 34 / ranks if again.cut else 10 + 24 / ranks
    scores = 0.0 if again.scores else 5 * heads * tokens / (width * ranks)
    return boundary * (plain + scores)


def layer_flops(model: TransformerSizes, again: Recompute) -> float:
    """Of one layer and sample, forward and backward, with what is computed again."""
    scores = 4.0 * model.tokens**2 * model.width
    forward = 24.0 * model.tokens * model.width**2 + scores
    return 3 * forward + (forward if again.layers else scores if again.scores else 0.0)
