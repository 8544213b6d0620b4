"""Local products C = alpha A B + beta C on one rank: loops to learn from, libraries to use, and a
tuner that chooses.

`KERNELS` (in `kernels`) names them all; `tuner` measures them on this machine; `product` is the
call that the algorithms make.
"""
