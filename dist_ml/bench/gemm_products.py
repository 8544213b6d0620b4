"""The ranks' part of `dist-ml bench gemm_words`: random products, and the words they move."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from dist_ml.bench.counting_transport import Seen, counted
from dist_ml.bench.form import most
from dist_ml.bench.gemm_checks import redistributed
from dist_ml.bench.gemm_volumes import VOLUMES, volume_plan
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


def measure_products(comm: Communicator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Random products on this world: how wrong; of how many the words were seen, and how many of
    those, and how many ledgers, were not as planned on some rank; volumes; redistributions.
    """
    draw, product = random.Random(comm.size), local_product("torch")
    comm, passed = counted(comm)
    errors: list[float] = []
    seen = seen_unplanned = ledger_unplanned = 0
    for name in GEMMS:
        for case in range(arguments["cases"]):
            plan, dtype, alpha, beta = _draw(draw, name, case, comm.size)
            a, b = _operand(plan.layout_a, comm, 1, dtype), _operand(plan.layout_b, comm, 2, dtype)
            c = matrix.random(plan.layout_c, comm, 3, dtype)
            whole_a, whole_b, whole_c = (operand.gather_everywhere() for operand in (a, b, c))
            words = _multiply(plan, comm, passed, product, (a, b, c, alpha, beta))
            planned = [plan.moved(rank) for rank in range(comm.size)]
            seen += words.seen is not None
            seen_unplanned += words.seen not in (None, planned)
            ledger_unplanned += words.ledger != planned
            errors.append(
                error_over_bound(c.gather_everywhere(), whole_a, whole_b, whole_c, alpha, beta)
            )
    relayouts, wrong = redistributed(comm)
    return {
        "products": len(errors),
        "seen": seen,
        "error over bound": most(errors),
        "seen, not as planned": seen_unplanned,
        "ledger not as planned": ledger_unplanned,
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


class ProductWords(NamedTuple):
    """What one product moved, by rank."""

    ledger: list[Moved]  # a formula's where the product is not made of messages
    seen: list[Moved] | None  # below the ledger; None where not all of it could be


def _multiply(
    plan: Plan, comm: Communicator, seen: Seen, product: Any, operands: tuple[Any, ...]
) -> ProductWords:
    """Multiply once."""
    gemm = Gemm(plan, comm, product)
    seen.whole = True
    before, entered = seen.words(), comm.traffic.total()
    gemm(*operands)
    passed, total = seen.words(), comm.traffic.total()
    ledger = Moved(
        total.words_sent - entered.words_sent,
        total.words_received - entered.words_received,
        total.messages - entered.messages,
    )
    moved = Moved(*(now - then for now, then in zip(passed, before, strict=True)))
    told = comm.allgather_objects((ledger, moved, seen.whole))
    gemm.free()
    ledgers, counts, whole = (list(each) for each in zip(*told, strict=True))
    return ProductWords(ledgers, counts if all(whole) else None)


def _volumes(comm: Communicator, seen: Seen, n: int) -> dict[str, dict[str, int | None]]:
    """Words received by the most loaded rank, in the ledger and seen (None: they can't be), by
    algorithm, of the square products of the table.
    """
    volumes: dict[str, dict[str, int | None]] = {}
    for name, ranks, _ in VOLUMES:
        if ranks == comm.size:
            plan = volume_plan(name, n, ranks)
            a, b = matrix.zeros(plan.layout_a, comm), matrix.zeros(plan.layout_b, comm)
            c = matrix.zeros(plan.layout_c, comm)
            words = _multiply(plan, comm, seen, lambda *_: None, (a, b, c))
            volumes[name] = {
                "ledger": max(rank.received for rank in words.ledger),
                "seen": None if words.seen is None else max(rank.received for rank in words.seen),
            }
    return volumes
