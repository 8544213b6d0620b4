"""Sharded matrix multiplication at the communication lower bound: layouts, plans, local kernels and
the algorithms `family.GEMMS`.

Planning (`family.plan` and all that it uses) is made of pure values and functions, which need
neither torch nor MPI.
"""
