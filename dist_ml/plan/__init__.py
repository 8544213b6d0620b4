"""Knowing before a run: what it computes, moves and keeps, and how long that takes; no MPI, and no
arithmetic.
"""
