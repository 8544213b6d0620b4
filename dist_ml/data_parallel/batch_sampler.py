"""This rank's part of every global batch, for torch's `DataLoader`."""

from collections.abc import Iterator, Sized

import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.mesh import Mesh
from dist_ml.data_parallel.sampler import GlobalSampler
from dist_ml.errors import ConfigError


class BatchSampler(torch.utils.data.Sampler[list[int]]):
    """Deals the samples 0 … len(dataset)-1 to the ranks of `mesh`'s data axis, batch by batch:

        sampler = BatchSampler(dataset, batch_size=256, mesh=mesh)
        loader = DataLoader(dataset, batch_sampler=sampler)
        for epoch in range(10):
            sampler.set_epoch(epoch)
            for inputs, targets in loader: …

    `batch_size` is that of all ranks together. Which samples a step sees depends on (seed, epoch,
    step) alone, on any number of ranks; every rank has as many batches, each of at least one
    sample, so that no rank waits for another at the end. What is left of an epoch is a smaller
    batch, or left out where that is less than a sample a rank (or with `drop_last`). Memory O(1).
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        mesh: Mesh | Communicator,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        comm = mesh.comm("data") if isinstance(mesh, Mesh) else mesh
        num_samples = len(dataset)
        if not comm.size <= min(batch_size, num_samples):
            raise ConfigError(
                f"a batch of {batch_size} of {num_samples} samples has none for some of "
                f"{comm.size} ranks; batch_size, for all ranks together, must be {comm.size} or "
                "more"
            )
        self._rank, self._size = comm.rank, comm.size
        self._sampler = GlobalSampler(num_samples, batch_size, seed, shuffle)
        self._epoch = 0
        last = self._sampler.batch_size_at(self._sampler.steps_per_epoch - 1)
        whole = last == self._sampler.batch_size or (not drop_last and last >= comm.size)
        self._num_steps = self._sampler.steps_per_epoch - (not whole)

    def set_epoch(self, epoch: int) -> None:
        """The order of the samples from the next pass on."""
        self._epoch = epoch

    def global_batch_size(self, step: int) -> int:
        """Samples over all ranks in a step: what a sum of losses is divided by where ranks' shares
        are uneven.
        """
        return self._sampler.batch_size_at(step)

    def __len__(self) -> int:
        """Steps an epoch."""
        return self._num_steps

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self._epoch
        for step in range(self._num_steps):
            yield self._sampler.share(epoch, step, self._rank, self._size).tolist()
