"""A product of matrices that ranks share: each holds a block of rows, and no rank a whole matrix.

dist-ml launch -n 4 python examples/gemm.py    or mpiexec, or srun
"""

import time

import dist_ml
from dist_ml.gemm import layouts, matrix

mesh = dist_ml.init()
comm = mesh.world
m, n, k = 900, 700, 800
a = matrix.random(layouts.block_rows(m, k, comm.size), comm, seed=1)
b = matrix.random(layouts.block_rows(k, n, comm.size), comm, seed=2)

begin = time.perf_counter()
c = dist_ml.matmul(a, b)  # the algorithm with the least predicted time, and its own layout of c
seconds = time.perf_counter() - begin

wholes = [each.gather() for each in (a, b, c)]  # on rank 0, to see that it is right
if comm.rank == 0:
    first, second, product = wholes
    worst = (product - first @ second).abs().max().item()
    flops = 2 * m * n * k / seconds
    print(f"{m} x {k} x {n} on {comm.size} ranks: {flops / 1e9:.1f} GFlop/s, off by {worst:.1e}")
