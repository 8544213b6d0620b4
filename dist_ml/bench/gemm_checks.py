"""Parts of `dist-ml bench gemm_words`: redistributions, and the peak memory of products under a
limit.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.gemm import family, matrix, redistribution
from dist_ml.gemm.choice import Choice
from dist_ml.gemm.grid import Grid
from dist_ml.gemm.layout import Layout
from dist_ml.gemm.layouts import (
    block_2d,
    block_3d,
    block_25d,
    block_cols,
    block_cyclic,
    block_rows,
    on_one_rank,
)
from dist_ml.gemm.multiply import Gemm
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.kernels.product import local_product

_STATUS = Path("/proc/self/status")
_ROWS, _COLS = 61, 47


def redistributed(comm: Communicator) -> tuple[int, int]:
    """Between all pairs of layouts: (how many, how many that moved other words than the elements
    whose owner changes).
    """
    count = wrong = 0
    for source, target in itertools.product(_layouts(comm.size), repeat=2):
        start = matrix.random(source, comm, 5)
        before = comm.traffic.snapshot()
        found = start.to(target)
        sent = sum(tally.words_sent for tally in comm.traffic.since(before).values())
        right = torch.equal(found.storage, matrix.random(target, comm, 5).storage)
        told = comm.allgather_objects((sent, right))
        count += 1
        wrong += sum(words for words, _ in told) != _changes(source, target) or not all(
            same for _, same in told
        )
    assert wrong or all(
        redistribution.moved_words(a, b) == _changes(a, b)
        for a, b in itertools.product(_layouts(comm.size), repeat=2)
    )
    return count, wrong


def _layouts(size: int) -> list[Layout]:
    return [
        block_rows(_ROWS, _COLS, size),
        block_cols(_ROWS, _COLS, size),
        block_2d(_ROWS, _COLS, (1, size)),
        block_cyclic(_ROWS, _COLS, (size, 1), (3, 4)),
        block_25d(_ROWS, _COLS, (1, 1, size)),
        block_25d(_ROWS, _COLS, (size, 1, 1), replicated=True),
        block_3d(_ROWS, _COLS, (1, size, 1), (0, 2, 1)),
        on_one_rank(_ROWS, _COLS),
        block_cyclic(_COLS, _ROWS, (1, size), (5, 2)).transposed,
    ]


def _changes(source: Layout, target: Layout) -> int:
    """The naive count: elements that a rank is to hold and doesn't, on a map of the whole matrix
    for each rank.
    """
    total = 0
    for rank in range(max(source.num_ranks, target.num_ranks)):
        held, wanted = (torch.zeros(layout.shape, dtype=torch.bool) for layout in (source, target))
        for layout, owned in ((source, held), (target, wanted)):
            for piece in layout.pieces(rank):
                owned[piece.rows.slice, piece.cols.slice] = True
        total += int((wanted & ~held).sum())
    return total


def measure_memory(comm: Communicator, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Peak memory beyond the shards, measured by the system and planned, without a limit and with
    two; the worst rank's.
    """
    size, records = arguments["size"], []
    layered = Choice(grid=Grid(1, comm.size // 2, 2)) if comm.size % 2 == 0 else Choice()
    products = {
        "auto": Choice(),
        "cosma": layered,
        "summa": Choice(),
        "summa_25d": layered,
        "cannon": Choice(),
    }
    for name, part in itertools.product(products, (None, 0.9, 0.75)):
        free = family.plan(name, ProductShape(size, size, size, comm.size), products[name])
        if part is not None and name == "cannon":
            continue  # it needs its four blocks, whatever the limit
        limit = None if part is None else int(part * free.working_bytes)
        plan = family.plan(
            name, ProductShape(size, size, size, comm.size, memory=limit), products[name]
        )
        if plan.working_bytes == 0:
            continue  # computed where the shards are: no peak to compare
        a, b = matrix.zeros(plan.layout_a, comm), matrix.zeros(plan.layout_b, comm)
        c = matrix.zeros(plan.layout_c, comm)
        gemm = Gemm(plan, comm, local_product("torch"))
        gemm(a, b, c)  # what MPI and the kernel allocate for themselves, once, is not the product's
        measured = torch.tensor([_peak_bytes(lambda: gemm(a, b, c))])  # noqa: B023
        comm.allreduce(measured, "max")
        gemm.free()
        grid = " x ".join(map(str, plan.grid))
        point = {
            "product": name,
            "grid": grid,
            "limit bytes": "none" if limit is None else limit,
            "planned bytes": plan.working_bytes,
        }
        records.append(
            {
                **point,
                "measured bytes": int(measured),
                "measured / planned": int(measured) / plan.working_bytes,
            }
        )
    return records


def _peak_bytes(call: Any) -> int:
    """How much the resident memory rises while `call` runs."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
