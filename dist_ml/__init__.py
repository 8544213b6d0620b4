"""Train neural networks over MPI, and study how that scales.

Importing the package starts no MPI and imports neither torch nor numpy; see `docs/architecture.md`
for the layers.
"""

__version__ = "0.1.0"
