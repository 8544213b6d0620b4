"""A script in the shape that Horovod's users have, moved over: comments say what a line was.

Broadcasting parameters and optimizer state, and scaling by ranks, are no longer needed.

dist-ml launch -n 4 python examples/from_horovod.py    in place of horovodrun -np 4 python …
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

import dist_ml  # import horovod.torch as hvd

mesh = dist_ml.init()  # hvd.init()
rank, size = mesh.world.rank, mesh.world.size  # hvd.rank(), hvd.size()

torch.manual_seed(42)
images = torch.randn(640, 1, 12, 12)
dataset = TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())
sampler = dist_ml.BatchSampler(dataset, 64 * size, mesh)  # DistributedSampler(dataset, size, rank)
loader = DataLoader(dataset, batch_sampler=sampler)  # DataLoader(dataset, 64, sampler=sampler)

network = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(800, 2),
)
model = dist_ml.DataParallel(network, mesh)  # hvd.broadcast_parameters(network.state_dict(), 0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
# optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=network.named_parameters())

for epoch in range(5):
    model.train()
    sampler.set_epoch(epoch)
    for data, target in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
    mean = loss.detach().clone()
    mesh.world.allreduce(mean, "mean")  # mean = hvd.allreduce(mean, name="loss")
    if rank == 0:
        print(f"epoch {epoch + 1}: loss {mean.item():.4f} on {size} ranks")
