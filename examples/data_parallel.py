"""A training script of a user's own on any number of ranks; the marked lines are dist_ml's.

python examples/data_parallel.py                        alone
dist-ml launch -n 4 python examples/data_parallel.py    or mpiexec, or srun
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

import dist_ml

mesh = dist_ml.init()  # 1: the ranks that were started

torch.manual_seed(0)
inputs = torch.randn(1000, 20)
dataset = TensorDataset(inputs, (inputs[:, :2].sum(1) > 0).long())
network = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
model = dist_ml.DataParallel(network, mesh)  # 2: gradients are averaged by the end of backward()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
sampler = dist_ml.BatchSampler(dataset, batch_size=100, mesh=mesh)  # 3: of all ranks together
loader = DataLoader(dataset, batch_sampler=sampler)

for epoch in range(5):
    sampler.set_epoch(epoch)  # 4: another order each epoch
    for features, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if mesh.world.rank == 0:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f} on {mesh.world.size} ranks")
