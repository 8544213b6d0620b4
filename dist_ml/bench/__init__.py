"""Benchmarks, one form for all: each compares in one run, alternating, and holds what it measured
against limits.

`benches.py:BENCHES` names them; `dist-ml bench NAME` runs one. A benchmark is a function of its
configuration and of `Worlds`, through which it has its parts measured on ranks; a part is a
function that runs on every rank of a world.
"""
