"""Sharded matrix multiplication at the communication lower bound: layouts, plans, local kernels and
the algorithms `GEMMS`.

`layout`, `redistribution`, `bounds`, `grid`, `plan` and `planners` are pure values and functions
that need neither torch nor MPI.
"""
