"""The table of volumes of `dist-ml bench gemm_words`: words of square products, beside the formulas
of the literature.
"""

import math
from collections.abc import Callable, Mapping

from dist_ml.bench.form import Record
from dist_ml.gemm import family
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape

# (algorithm, ranks, layers)
VOLUMES = (
    ("cannon", 4, 1), ("cannon", 9, 1), ("summa", 4, 1), ("summa", 8, 1), ("summa", 9, 1),
    ("summa_25d", 8, 2),
    ("carma", 8, 1), ("cosma", 4, 1), ("cosma", 8, 1), ("cosma", 9, 1),
)  # fmt: skip

# Words received by a rank for square matrices of side n on p ranks, c of them layers; leading terms
# of the literature.
FORMULAS: dict[str, tuple[str, Callable[[float, float, float], float]]] = {
    "cannon": ("2 n^2 / sqrt(p)", lambda n, p, _: 2 * n * n / math.sqrt(p)),
    "summa": ("2 n^2 / sqrt(p)", lambda n, p, _: 2 * n * n / math.sqrt(p)),
    "summa_25d": ("2 n^2 / sqrt(c p)", lambda n, p, c: 2 * n * n / math.sqrt(c * p)),
    "carma": ("3 n^2 / p^(2/3)", lambda n, p, _: 3 * n * n / p ** (2 / 3)),
    "cosma": ("3 n^2 / p^(2/3)", lambda n, p, _: 3 * n * n / p ** (2 / 3)),
}


def volume_records(
    n: int, volumes: Mapping[tuple[str, int], Mapping[str, int | None]]
) -> list[Record]:
    """Received by the rank with most: stated by the plan, and seen where it could be."""
    records: list[Record] = []
    for name, ranks, layers in VOLUMES:
        if (name, ranks) in volumes:
            text, formula = FORMULAS[name]
            plan = volume_plan(name, n, ranks)
            records.append(
                {
                    "algorithm": name,
                    "p": ranks,
                    "grid": " x ".join(map(str, plan.grid)),
                    "stated words": plan.words,
                    "ledger words": volumes[name, ranks]["ledger"],
                    "seen words": volumes[name, ranks]["seen"],
                    "formula": text,
                    "leading term": round(formula(n, ranks, layers)),
                    "stated / bound": plan.words / plan.bound_words,
                }
            )
    return records


def volume_plan(name: str, n: int, ranks: int) -> Plan:
    """The plan of one row of the table of volumes."""
    layers = next(c for algorithm, p, c in VOLUMES if (algorithm, p) == (name, ranks))
    return family.plan(
        name,
        ProductShape(n, n, n, ranks),
        Choice(replication=layers if name == "summa_25d" else None),
    )
