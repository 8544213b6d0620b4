"""Train neural networks over MPI, and study how that scales.

    import dist_ml

    mesh = dist_ml.init()                              # the ranks that were started; alone, one
    model = dist_ml.DataParallel(MyModel(), mesh)      # gradients are averaged in backward()
    sampler = dist_ml.BatchSampler(dataset, batch_size=256, mesh=mesh)

Importing the package starts no MPI and imports neither torch nor numpy: what is named here is
loaded when it is first used. `docs/library.md` is the guide, `docs/architecture.md` the layers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_ml.comm.communicator import Communicator as Communicator
    from dist_ml.comm.mesh import Mesh as Mesh
    from dist_ml.config.sparse import SparseConfig as SparseConfig
    from dist_ml.data_parallel.batch_sampler import BatchSampler as BatchSampler
    from dist_ml.data_parallel.module import DataParallel as DataParallel
    from dist_ml.data_parallel.sampler import GlobalSampler as GlobalSampler
    from dist_ml.errors import DistMLError as DistMLError
    from dist_ml.gemm.autograd import matmul as matmul
    from dist_ml.gemm.matrix import ShardedMatrix as ShardedMatrix
    from dist_ml.own_training import fit as fit
    from dist_ml.saving import load as load
    from dist_ml.saving import save as save
    from dist_ml.script import init as init

__version__ = "0.1.0"

_PUBLIC = {
    "BatchSampler": "dist_ml.data_parallel.batch_sampler",
    "Communicator": "dist_ml.comm.communicator",
    "DataParallel": "dist_ml.data_parallel.module",
    "DistMLError": "dist_ml.errors",
    "GlobalSampler": "dist_ml.data_parallel.sampler",
    "Mesh": "dist_ml.comm.mesh",
    "ShardedMatrix": "dist_ml.gemm.matrix",
    "SparseConfig": "dist_ml.config.sparse",
    "fit": "dist_ml.own_training",
    "load": "dist_ml.saving",
    "matmul": "dist_ml.gemm.autograd",
    "save": "dist_ml.saving",
    "init": "dist_ml.script",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dist_ml' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
