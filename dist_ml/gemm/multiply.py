"""C = alpha op(A) op(B) + beta C on sharded matrices: plan once, execute many times."""

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.thread_level import require_thread_level
from dist_ml.errors import ConfigError
from dist_ml.gemm import family, grid_comm
from dist_ml.gemm.choice import Choice, Orders
from dist_ml.gemm.family import AUTO, GEMMS
from dist_ml.gemm.matrix import ShardedMatrix, empty
from dist_ml.gemm.plan import Plan
from dist_ml.gemm.product_shape import ProductShape
from dist_ml.gemm.tile_sum import ProductSums
from dist_ml.kernels.product import Product, local_product, sum_dtype
from dist_ml.measure.cost_model import CostModel


class Gemm:
    """One plan on the ranks of `comm`, ready to run as often as wanted. Making and freeing it are
    collective.

    `product` multiplies this rank's blocks; by default on the kernel that the tuner's measurements
    favour. `ConfigError` for a plan of other ranks; `MachineError` where panels are to arrive while
    others are multiplied and MPI doesn't let several threads call it.
    """

    def __init__(self, plan: Plan, comm: Communicator, product: Product | None = None) -> None:
        if plan.shape.ranks != comm.size:
            raise ConfigError(
                f"the plan is for {plan.shape.ranks} ranks, but {comm.size} were started; plan "
                f"for {comm.size}"
            )
        if plan.buffers > 1 and comm.size > 1:
            where = f"algorithm={plan.algorithm}, whose panels arrive on a thread,"
            require_thread_level(comm, "MULTIPLE", where)
        self.plan = plan
        self.comm = comm
        self._product = product or local_product()
        self._grid = grid_comm.split(plan, comm)

    def __call__(
        self,
        a: ShardedMatrix,
        b: ShardedMatrix,
        c: ShardedMatrix | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> ShardedMatrix:
        """C = alpha A B + beta C, in place where `c` is given; a new matrix in the plan's layout
        otherwise. Collective.

        Operands in another layout than the plan's are redistributed first (words:
        `redistribution.moved_words`); transpose views in the planned order are used as they lie.
        Words otherwise: `plan.moved(rank)`.
        """
        self._check(a, b, c)
        a, b = a.to(self.plan.layout_a), b.to(self.plan.layout_b)
        result = self._result(c, beta, a.dtype)
        if self._grid is not None:
            sums = ProductSums(
                self.plan, self.comm.rank, result.storage, alpha, beta, self._product
            )
            GEMMS[self.plan.algorithm].multiply(self.plan, self._grid, a, b, sums)
        if c is None or result is c:
            return result
        c.storage.copy_(result.to(c.layout).storage)
        return c

    def free(self) -> None:
        """Give the communicators back. Collective."""
        if self._grid is not None:
            self._grid.free()

    def _result(self, c: ShardedMatrix | None, beta: float, dtype: torch.dtype) -> ShardedMatrix:
        if c is None or (beta == 0.0 and c.layout != self.plan.layout_c):
            return empty(self.plan.layout_c, self.comm, dtype)
        return c.to(self.plan.layout_c)

    def _check(self, a: ShardedMatrix, b: ShardedMatrix, c: ShardedMatrix | None) -> None:
        p = self.plan.shape
        expected = {
            "A": (a, (p.m, p.k)),
            "B": (b, (p.k, p.n)),
            **({"C": (c, (p.m, p.n))} if c is not None else {}),
        }
        for name, (matrix, shape) in expected.items():
            if matrix.shape != shape:
                raise ConfigError(
                    f"{name} is {matrix.shape[0]} x {matrix.shape[1]}, but the plan is for "
                    f"{shape[0]} x {shape[1]}"
                )
            if matrix.dtype != a.dtype:
                raise ConfigError(
                    f"{name} holds {matrix.dtype} and A {a.dtype}; convert one of them"
                )


def plan_for(
    a: ShardedMatrix,
    b: ShardedMatrix,
    algorithm: str = AUTO,
    memory: int | None = None,
    choice: Choice | None = None,
    model: CostModel | None = None,
) -> Plan:
    """The plan for A B as these matrices are: their sizes, dtype, and whether they are transpose
    views. Errors, and what `model` is for: `family.plan`.
    """
    if a.shape[1] != b.shape[0]:
        raise ConfigError(
            f"A is {a.shape[0]} x {a.shape[1]} and B {b.shape[0]} x {b.shape[1]}: A's columns "
            "must be B's rows; transpose one (.T)?"
        )
    word_bytes, sum_bytes = a.storage.element_size(), sum_dtype(a.dtype).itemsize
    shape = ProductShape(
        a.shape[0], b.shape[1], a.shape[1], a.comm.size, word_bytes, sum_bytes, memory
    )
    orders = Orders(a.layout.column_major, b.layout.column_major)
    return family.plan(algorithm, shape, choice, orders, model)


def matmul(
    a: ShardedMatrix,
    b: ShardedMatrix,
    algorithm: str = AUTO,
    memory: int | None = None,
    product: Product | None = None,
) -> ShardedMatrix:
    """A B, planned and executed once. Collective. For many products of one shape, make a `Gemm`."""
    gemm = Gemm(plan_for(a, b, algorithm, memory), a.comm, product)
    try:
        return gemm(a, b)
    finally:
        gemm.free()
