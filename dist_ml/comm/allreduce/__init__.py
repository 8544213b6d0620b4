"""The allreduce family: one dict of ways to sum a vector over ranks, all with the same face
(`base.Allreduce`).
"""
