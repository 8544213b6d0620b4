"""A script for torch's DistributedDataParallel, over MPI: two marked lines are all that changes.

dist-ml launch -n 4 python examples/ddp.py    or mpiexec, or srun
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dist_ml.torch_backend  # noqa: F401  # 1: registers the backend

dist.init_process_group("dist_ml")  # 2: in place of "gloo"; no MASTER_ADDR, RANK, … to set

torch.manual_seed(0)
inputs = torch.randn(1000, 20)
dataset = TensorDataset(inputs, (inputs[:, :2].sum(1) > 0).long())
network = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
model = DistributedDataParallel(network)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=100 // dist.get_world_size(), sampler=sampler)

for epoch in range(5):
    sampler.set_epoch(epoch)
    for features, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f} on {dist.get_world_size()} ranks")
dist.destroy_process_group()
