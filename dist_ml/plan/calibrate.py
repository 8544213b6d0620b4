"""Measures a `Processor`: what a rank computes (measured_rates.py), how ranks reach each other
(measured_exchanges.py), batches, memory, and what whole steps take beside them (constants.py).

Collective: all ranks of a node measure at once, as they compute at once. Where they outnumber its
cores, only as many as have one measure what they compute, and all of them how they reach each
other.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.config.data import DataConfig
from dist_ml.datasets import open_dataset
from dist_ml.launch.mpiexec import cores
from dist_ml.measure.memory import peak_bytes
from dist_ml.plan.constants import train_shortly, with_constants
from dist_ml.plan.curves import Curve
from dist_ml.plan.machine import Processor
from dist_ml.plan.measured_exchanges import measure_allreduces, measure_messages
from dist_ml.plan.measured_rates import caches, measure_rates
from dist_ml.plan.timing import slowest, wait_for_all

_SYNTHETIC = DataConfig(
    "synthetic", num_train=1 << 16, num_test=1, num_features=128, num_outputs=8,
    task="classification", teacher_width=4, noise=0.0, seed=0,
)  # fmt: skip
# Data sets whose batches are measured.
_DATA = (
    _SYNTHETIC,
    DataConfig("digits", test_every=5),
    DataConfig("text", num_tokens=64, test_fraction=0.1),
)
_SAMPLES = (4, 64, 1024)


def calibrate(comm: Communicator, tell: Callable[[str], None]) -> Processor:
    """A minute or two. The slowest rank's seconds count."""
    train_shortly()
    base_bytes = peak_bytes()
    computing = max(1, min(comm.size, cores() // torch.get_num_threads()))
    group = comm.split(0 if comm.rank < computing else None, comm.rank)
    own = None
    if group is not None:
        own = _computing(group, tell, base_bytes)
        group.free()
    wait_for_all(comm)
    processor: Processor = comm.broadcast_object(own)
    if comm.size == 1:
        return processor
    tell("messages")
    return dataclasses.replace(
        processor,
        ranks=comm.size,
        allreduces=measure_allreduces(comm, "auto"),
        collectives=measure_allreduces(comm, "native"),
        message=measure_messages(comm),
    )


def _computing(comm: Communicator, tell: Callable[[str], None], base_bytes: int) -> Processor:
    """All that needs no other ranks."""
    warm, cold = measure_rates(comm, tell)
    tell("batches")
    own_cache, cache = caches()
    processor = Processor(
        ranks=comm.size,
        computing=comm.size,
        threads=torch.get_num_threads(),
        warm=warm,
        cold=cold,
        own_cache_bytes=own_cache,
        cache_bytes=cache,
        loading=_loading(comm),
        base_bytes=base_bytes,
    )
    tell("steps")
    return with_constants(processor, comm)


def _loading(comm: Communicator) -> dict[str, Curve]:
    """Seconds of a batch by data set, over its bytes."""
    found = {}
    for config in _DATA:
        split = open_dataset(config).train
        seconds = {}
        for b in _SAMPLES:
            batch = partial(split.batch, np.arange(b) * 7 % split.num_samples)
            num_bytes = sum(part.numel() * part.element_size() for part in batch()[:2])
            seconds[float(num_bytes)] = slowest(comm, batch)
        found[config.name] = Curve.through(seconds)
    return found
