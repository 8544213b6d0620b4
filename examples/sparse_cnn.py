"""A CNN of a user's own whose ranks exchange 5 % of each gradient, the largest elements, with error
feedback: what a step doesn't send waits, and is sent later.

dist-ml launch -n 4 python examples/sparse_cnn.py    or mpiexec, or srun
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dist_ml

mesh = dist_ml.init()

torch.manual_seed(0)
images = torch.randn(1000, 1, 12, 12)
images[::2, :, 2:10, 5:7] += 1.2  # every second one has a bar
dataset = TensorDataset(images, torch.arange(1000) % 2)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 2),
)  # fmt: skip
sparse = dist_ml.SparseConfig("oktopk", density=0.05)  # biases and other short tensors go whole
model = dist_ml.DataParallel(network, mesh, sparse=sparse)
optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
sampler = dist_ml.BatchSampler(dataset, batch_size=100, mesh=mesh)
loader = DataLoader(dataset, batch_sampler=sampler)

for epoch in range(5):
    sampler.set_epoch(epoch)
    for inputs, targets in loader:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sent = mesh.world.traffic.total().bytes_sent / 1e6
    if mesh.world.rank == 0:
        print(
            f"epoch {epoch + 1}: loss {loss.item():.4f} on {mesh.world.size} ranks, {sent:.2f} MB"
        )
