"""PyTorch's own parallelism over MPI:

    import dist_ml.torch_backend
    torch.distributed.init_process_group("dist_ml")

with nothing else set: rank, size and the address of torch's store come over MPI, also alone. DDP,
FSDP2, DTensor, `DeviceMesh`, pipelining and distributed checkpoints then run as they are.

Importing this starts MPI, and from then on one rank's exception ends all ranks, as `dist_ml.init`
has it. Collective over all ranks.
"""

from dist_ml.process_group.registration import register
from dist_ml.script import started_world

register(started_world())
