"""The ranks' part of `dist-ml bench gemm_words`: random products, and the words they move."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dist_ml.bench.counting_transport import Seen, counted
from dist_ml.bench.form import most
from dist_ml.bench.gemm_checks import redistributed
from dist_ml.comm.communicator import Communicator
from dist_ml.gemm import family, matrix
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.family import GEMMS
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.matrix import ShardedMatrix
from dist_ml.gemm.multiply import Gemm
from dist_ml.gemm.plan import Moved, Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.reference import error_over_bound
from dist_ml.kernels.product import local_product

_DTYPES = {torch.float32: (4, 4), torch.float64: (8, 8), torch.bfloat16: (2, 4)}
_SIZES = (1, 2, 3, 5, 7, 8, 16, 31, 33, 64, 100, 129, 256, 257)

VOLUMES = (
    ("cannon", 4, 1), ("cannon", 9, 1), ("summa", 4, 1), ("summa", 8, 1), ("summa", 9, 1),
    ("summa_25d", 8, 2),
    ("carma", 8, 1), ("cosma", 4, 1), ("cosma", 8, 1), ("cosma", 9, 1),
)  # fmt: skip


def measure_products(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Random products on this world: how wrong, of how many the words were seen, and how many
    were not as planned on some rank; volumes; redistributions.
    """
    draw, product = random.Random(comm.size), local_product("torch")
    comm, passed = counted(comm)
    errors: list[float] = []
    unplanned = seen = 0
    for name in GEMMS:
        for case in range(arguments["cases"]):
            plan, dtype, alpha, beta = _draw(draw, name, case, comm.size)
            a, b = _operand(plan.layout_a, comm, 1, dtype), _operand(plan.layout_b, comm, 2, dtype)
            c = matrix.random(plan.layout_c, comm, 3, dtype)
            whole_a, whole_b, whole_c = (operand.gather_everywhere() for operand in (a, b, c))
            moved, whole = _multiply(plan, comm, passed, product, (a, b, c, alpha, beta))
            seen += whole
            unplanned += any(moved[rank] != plan.moved(rank) for rank in range(comm.size))
            errors.append(
                error_over_bound(c.gather_everywhere(), whole_a, whole_b, whole_c, alpha, beta)
            )
    relayouts, wrong = redistributed(comm)
    return {
        "products": len(errors),
        "seen": seen,
        "error over bound": most(errors),
        "not as planned": unplanned,
        "relayouts": relayouts,
        "relayouts wrong": wrong,
        "volumes": _volumes(comm, passed, arguments["volume_size"]),
    }


def _draw(
    draw: random.Random, name: str, case: int, ranks: int
) -> tuple[Plan, torch.dtype, float, float]:
    """Any sizes and dtype; all transposes in turn; now and then a panel width or a memory limit."""
    dtype = draw.choice(list(_DTYPES))
    orders = Orders(bool(case & 1), bool(case & 2))
    m, n, k = (draw.choice(_SIZES) for _ in range(3))
    product_shape = ProductShape(m, n, k, ranks, *_DTYPES[dtype])
    panel = draw.choice([None, 1, 7, 32])
    choice = Choice(panel=panel if "panel" in GEMMS[name].honours else None)
    plan = family.plan(name, product_shape, choice, orders)
    if draw.random() < 0.3:
        plan = family.plan(name, replace(product_shape, memory=plan.working_bytes), None, orders)
    return plan, dtype, *draw.choice([(1.0, 0.0), (2.0, -1.0), (0.5, 1.0)])


def _operand(layout: Layout, comm: Communicator, seed: int, dtype: torch.dtype) -> ShardedMatrix:
    if layout.column_major:
        return matrix.random(layout.transposed, comm, seed, dtype).T
    return matrix.random(layout, comm, seed, dtype)


def _multiply(
    plan: Plan, comm: Communicator, seen: Seen, product: Any, operands: tuple[Any, ...]
) -> tuple[list[Moved], bool]:
    """Multiply once. What each rank moved: as seen below the ledger where all of it was (True), as
    the ledger says otherwise.
    """
    gemm = Gemm(plan, comm, product)
    seen.whole = True
    before, entered = seen.words(), comm.traffic.total()
    gemm(*operands)
    passed, ledger = seen.words(), comm.traffic.total()
    stated = (
        ledger.words_sent - entered.words_sent,
        ledger.words_received - entered.words_received,
        ledger.messages - entered.messages,
    )
    whole = all(comm.allgather_objects(seen.whole))
    moved = tuple(now - then for now, then in zip(passed, before, strict=True))
    gemm.free()
    told: list[Moved] = comm.allgather_objects(Moved(*(moved if whole else stated)))
    return told, whole


def _volumes(comm: Communicator, seen: Seen, n: int) -> dict[str, int]:
    """Words received by the most loaded rank, by algorithm, of the square products of the table."""
    volumes = {}
    for name, ranks, _ in VOLUMES:
        if ranks == comm.size:
            plan = volume_plan(name, n, ranks)
            a, b = matrix.zeros(plan.layout_a, comm), matrix.zeros(plan.layout_b, comm)
            c = matrix.zeros(plan.layout_c, comm)
            moved, _ = _multiply(plan, comm, seen, lambda *_: None, (a, b, c))
            volumes[name] = max(rank.received for rank in moved)
    return volumes


def volume_plan(name: str, n: int, ranks: int) -> Plan:
    """The plan of one row of the table of volumes."""
    layers = next(c for algorithm, p, c in VOLUMES if (algorithm, p) == (name, ranks))
    return family.plan(
        name,
        ProductShape(n, n, n, ranks),
        Choice(replication=layers if name == "summa_25d" else None),
    )
