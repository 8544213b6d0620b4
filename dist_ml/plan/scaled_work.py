"""What blocks do for a micro-batch of any size, from two sizes: every size of a tensor grows evenly
with the samples where no rank holds a part of them.
"""

from dist_ml.plan.model_work import BlockWork, Pass
from dist_ml.plan.operators import Operator
from dist_ml.plan.planned_ranks import Collective

FEW = 2  # samples; a single one's dimension may count for nothing
_LARGEST_NUMBER = 8  # bytes


def scaled(few: BlockWork, more: BlockWork, num_samples: int) -> BlockWork | None:
    """The work of `num_samples`, from that of `FEW` and of one more; None where the two are not of
    the same operators.
    """
    forward = _pass(few.forward, more.forward, num_samples)
    backward = _pass(few.backward, more.backward, num_samples)
    if forward is None or backward is None:
        return None
    return few._replace(
        forward=forward,
        backward=backward,
        kept_bytes=_at(few.kept_bytes, more.kept_bytes, num_samples),
        output_bytes=_at(few.output_bytes, more.output_bytes, num_samples),
    )


def _at(few: int, more: int, num_samples: int) -> int:
    return few + (more - few) * (num_samples - FEW)


def _pass(few: Pass, more: Pass, num_samples: int) -> Pass | None:
    if _kinds(few) != _kinds(more) or not all(map(_is_even, few.sent, more.sent)):
        return None
    operators = map(_operator, few.operators, more.operators, [num_samples] * len(few.operators))
    sent = map(_collective, few.sent, more.sent, [num_samples] * len(few.sent))
    return Pass(tuple(operators), tuple(sent))


def _kinds(one: Pass) -> list[object]:
    """What doesn't depend on the number of samples."""
    operators = [(operator.name, operator.product is None) for operator in one.operators]
    return [*operators, *((each.kind, each.ranks) for each in one.sent)]


def _is_even(few: Collective, more: Collective) -> bool:
    """Do words grow evenly, or does who has the rest when a vector is divided change?"""
    unit = few.ranks * _LARGEST_NUMBER
    divides = few.num_bytes % unit == more.num_bytes % unit == 0
    return few.num_bytes == more.num_bytes or divides


def _operator(few: Operator, more: Operator, n: int) -> Operator:
    product = few.product
    if few.product is not None and more.product is not None:
        rows, columns, inner = (
            _at(*pair, n) for pair in zip(few.product, more.product, strict=True)
        )
        product = rows, columns, inner
    return Operator(
        few.name,
        _at(few.flops, more.flops, n),
        _at(few.num_bytes, more.num_bytes, n),
        product,
        _at(few.times, more.times, n),
        layout=few.layout,
    )


def _collective(few: Collective, more: Collective, n: int) -> Collective:
    return Collective(
        few.kind, few.ranks, _at(few.num_bytes, more.num_bytes, n), _at(few.words, more.words, n)
    )
