"""The words that a rank sends in a step of a Transformer that is split over data, pipeline and
operator ranks, in closed form, for machines of any size.

    data       2 (D-1)/D parameters / (P O)
    pipeline   2 M A / O               of an inner stage; A = b tokens width, a boundary's words
    operator   layers/P M allreduces 2 (O-1)/O A    (4 allreduces: 2 forward, 2 backward)

Same forms as HammingMesh, SC 2022, section II.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class TransformerSizes:
    """A model of `layers` alike. Without embeddings, biases and norms it has 12 layers width^2
    parameters.
    """

    layers: int
    width: int
    tokens: int  # of a sample

    @property
    def num_parameters(self) -> int:
        return 12 * self.layers * self.width**2


class Split(NamedTuple):
    """Ranks along each axis, and what each replica computes at once."""

    data: int
    pipeline: int
    operator: int
    microbatches: int  # of a replica's step
    samples: int = 1  # of a micro-batch

    @property
    def num_ranks(self) -> int:
        return self.data * self.pipeline * self.operator


class Volumes(NamedTuple):
    """Words that a rank sends in a step along each axis."""

    data: float
    pipeline: float
    operator: float


GPT3 = TransformerSizes(layers=96, width=12_288, tokens=2048)
_ALLREDUCES_A_LAYER = 4


def volumes(model: TransformerSizes, split: Split) -> Volumes:
    """Of a rank in the middle of the pipeline."""
    d, p, o, m, b = split
    boundary = b * model.tokens * model.width
    layers = model.layers / p
    return Volumes(
        data=2 * (d - 1) / d * model.num_parameters / (p * o),
        pipeline=2 * m * boundary / o if p > 1 else 0.0,
        operator=_ALLREDUCES_A_LAYER * layers * m * 2 * (o - 1) / o * boundary,
    )
