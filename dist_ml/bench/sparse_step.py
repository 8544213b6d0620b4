"""The ranks' part of `dist-ml bench sparse`: one model, trained with each candidate in turn."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dist_ml.bench.shared_model import HOOKS, Ddp, SharedModel
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.config.sparse import SparseConfig
from dist_ml.data_parallel.dense_reducer import DenseReducer
from dist_ml.data_parallel.reducer import GradientReducer
from dist_ml.data_parallel.sparse_choice import resolve
from dist_ml.data_parallel.sparse_reducer import SparseReducer
from dist_ml.measure.compare import alternate, seconds_per_call

FP32, BITS16, FEWER = "fp32", "16 bit", "fewer"
DENSE, RING, OVERLAPPED, RING_BF16 = "dense", "dense ring", "dense ring, overlapped", "ring, bf16"
DDP = "ddp gloo"
# What a word of a baseline's gradients has on the wire, by baseline: like is compared with like.
BASELINES = {
    DENSE: FP32,
    RING: FP32,
    OVERLAPPED: FP32,
    RING_BF16: BITS16,
    DDP: FP32,
    f"{DDP}, fp16": BITS16,
    f"{DDP}, PowerSGD": FEWER,
}
WARM_UP_WORDS = 100_000  # of the allreduces, which connect and compile
_SETTLING_STEPS = 3  # before the first that is timed; dense ones have no state


class Candidate(NamedTuple):
    """One way to train."""

    step: Callable[[], object]
    precision: str
    reducer: GradientReducer | None  # None: not ours, and not in the ledger


def precision_of(sparse: SparseConfig) -> str:
    """What an entry's value has on the wire."""
    if sparse.qsgd_bits or sparse.values == "int4":
        return FEWER
    return BITS16 if sparse.values == "bf16" else FP32


def measure(
    comm: Communicator,
    *,
    widths: tuple[int, ...],
    batch: int,
    kernel: str,
    lr: float,
    sparse: Mapping[str, SparseConfig],
    ddp: bool,
    rounds: int,
    steps: int,
) -> dict[str, Any]:
    """Seconds a step by candidate and round; bytes, messages and phases of a step of each
    candidate's last round.
    """
    shared = SharedModel(widths, batch, kernel, lr, comm)
    candidates = _dense(shared, comm)
    for label, wanted in sparse.items():
        chosen = resolve(wanted, shared.gradients.num_words, comm)
        if chosen.allreduce != "none":
            reducer = SparseReducer(shared.gradients, shared.names, comm, chosen)
            candidates[label] = Candidate(
                functools.partial(shared.step, reducer), precision_of(chosen), reducer
            )
    if ddp:
        hooks = {f"{DDP}, {name}": hook for name, hook in HOOKS.items()}
        for label in (DDP, *hooks):
            step = Ddp(widths, batch, lr, comm, hooks.get(label)).step
            candidates[label] = Candidate(step, BASELINES[label], None)
    figures: dict[str, dict[str, Any]] = {}

    def timed(label: str) -> float:
        count = 1 if label in BASELINES else steps
        seconds, figures[label] = _timed(comm, candidates[label], count)
        return seconds

    for label, candidate in candidates.items():
        for _ in range(0 if label in (DENSE, RING, OVERLAPPED, RING_BF16) else _SETTLING_STEPS):
            candidate.step()
    seconds = alternate({label: functools.partial(timed, label) for label in candidates}, rounds)
    return {"ranks": comm.size, "figures": figures, "seconds": seconds}


def _dense(shared: SharedModel, comm: Communicator) -> dict[str, Candidate]:
    """Dense reducers over allreduces that have their connections and compiled loops; a step would
    take long on a slow link.
    """
    native, ring = family.make("native", comm), family.make("ring", comm)
    narrow = family.make("ring", comm, "bf16")
    for allreduce in (native, ring, narrow):
        allreduce(np.zeros(WARM_UP_WORDS, np.float32))
    reducers = {
        DENSE: DenseReducer(shared.gradients, native),
        RING: DenseReducer(shared.gradients, ring),
        OVERLAPPED: DenseReducer(shared.gradients, ring, "thread"),
        RING_BF16: DenseReducer(shared.gradients, narrow),
    }
    return {
        label: Candidate(functools.partial(shared.step, reducer), BASELINES[label], reducer)
        for label, reducer in reducers.items()
    }


def _timed(comm: Communicator, candidate: Candidate, steps: int) -> tuple[float, dict[str, Any]]:
    """Seconds a step, and what a step of all ranks moved: stated by the ledger, and seen by the
    counters of their hosts' interfaces.
    """
    if candidate.reducer is not None:
        candidate.reducer.diagnostics()
    comm.barrier()
    seen, before = link_bytes(), comm.traffic.total()
    seconds = seconds_per_call(comm, candidate.step, steps)
    comm.barrier()
    after = comm.traffic.total()
    diagnostics = candidate.reducer.diagnostics() if candidate.reducer is not None else {}
    moved = np.array(
        [
            after.bytes_sent - before.bytes_sent,
            after.messages - before.messages,
            link_bytes() - seen,
        ],
        np.float64,
    )
    comm.allreduce(moved)
    phases = ("select", "exchange", "apply")
    return seconds, {
        "precision": candidate.precision,
        "bytes_sent": moved[0] / steps,
        "messages": moved[1] / steps,
        "bytes_seen": moved[2] / steps,
        "density_result": diagnostics.get("density_result", 1.0),
        **{f"{each}_ms": 1e3 * diagnostics.get(f"seconds_{each}", 0.0) / steps for each in phases},
    }


def link_bytes(interface: str = "eth0") -> int:
    """What has left this host by its interface, headers included; 0 where it has none."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            return int(numbers.split()[8])
    return 0
