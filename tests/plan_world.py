"""A machine on which seconds can be told by hand."""

import math

from dist_ml.plan.machine import PRODUCT_SIZES, Curve, Processor, Products

RATE = 1e10  # floating-point operations a second


def ideal(ranks: int = 1) -> Processor:
    """Every product at one rate, bytes at another, no constants."""
    sizes = [(m, n, k) for m in PRODUCT_SIZES for n in PRODUCT_SIZES for k in PRODUCT_SIZES]
    bytes_curve = Curve((1.0, 1e9), (1e-9, 1.0))
    return Processor(
        ranks,
        1,
        Products({each: 2.0 * math.prod(each) / RATE for each in sizes}),
        {"add": bytes_curve},
        {"sgd": Curve((1.0, 1e9), (1e-9, 1.0)), "adamw": Curve((1.0,), (1e-9,))},
        allreduces={2: Curve((1.0, 1e9), (1e-9, 1.0))},
        collectives={2: Curve((1.0, 1e9), (1e-9, 1.0))},
        message=Curve((1.0, 1e9), (1e-9, 1.0)),
    )
