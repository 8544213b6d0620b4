"""How a run starts: which MPI, how many ranks, under which time limit. A leaf that needs only the
standard library and no MPI.
"""
