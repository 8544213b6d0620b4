"""A machine on which seconds can be told by hand."""

import math

from dist_ml.plan.curves import PRODUCT_SIZES, Curve, Products
from dist_ml.plan.machine import LAYOUTS, Processor, Rates

RATE = 1e10  # floating-point operations a second


def ideal(ranks: int = 1) -> Processor:
    """Every product at one rate, bytes at another, from memory half as fast; no constants."""
    sizes = [(m, n, k) for m in PRODUCT_SIZES for n in PRODUCT_SIZES for k in PRODUCT_SIZES]
    line = Curve((1.0, 1e9), (1e-9, 1.0))

    def rates(slower: float) -> Rates:
        table = Products({each: slower * 2.0 * math.prod(each) / RATE for each in sizes})
        curve = Curve(line.sizes, (slower * 1e-9, slower))
        layouts = dict.fromkeys(LAYOUTS, table)
        return Rates(layouts, {"add": curve}, {"sgd": curve, "adamw": Curve((1.0,), (1e-9,))})

    return Processor(
        ranks,
        ranks,
        1,
        rates(1.0),
        rates(2.0),
        own_cache_bytes=1 << 40,
        cache_bytes=1 << 40,
        allreduces={2: line},
        collectives={2: line},
        message=line,
    )
