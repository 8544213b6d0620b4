"""PyTorch's own tests of `torch.distributed` backends, from its wheel, on ranks that exist.

torch's base class starts a process a rank for each test. Here mpiexec has started the ranks, and
each calls the test's method itself, in a process group made for that test.
"""

import atexit
import functools
import os
import shutil
import tempfile
import unittest
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_ml.comm.communicator import Communicator
from dist_ml.process_group.process_group import NAME
from dist_ml.process_group.registration import register

# Tests that take a model on the CPU for names that they know, and otherwise none.
_BY_NAME = ("test_accumulate_gradients", "test_grads_same_across_ranks")
_LAST_BARRIER = 1000  # of a test: more than any calls, since a rank that failed has met fewer


def case(
    backend: str, world: Communicator, names: Iterable[str] | None = None, gates: str = "gloo"
) -> Any:
    """A `unittest.TestCase` of torch's tests (those called `names`, or all) on `backend`.

    Many tests look, while the module is imported, whether the backend is one that they know; there
    it is called `gates`, so that what they leave out is the same whichever backend runs them.
    Collective.
    """
    if backend == NAME and NAME.upper() not in dist.Backend._plugins:
        register(world)
    folder = Path(world.broadcast_object(tempfile.mkdtemp() if world.rank == 0 else None))
    if world.rank == 0:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module = imported(world.size, folder, gates)
    base: Any = module.DistributedTest._DistTestBase
    checks: Any = module.MultiProcessTestCase.__base__
    every = [name for name in dir(base) if name.startswith("test_")]
    unknown = set(names or ()).difference(every)
    assert not unknown, f"this torch has no {sorted(unknown)}"
    wanted = every if names is None else set(names)
    methods = {name: _skipping(getattr(base, name)) if name in wanted else None for name in every}
    return type(
        "TestDistributed",
        (_InProcess, base, checks),
        {
            **methods,
            "world": world,
            "backend": backend,
            "folder": folder,
            "module": module,
            "gates": gates,
        },
    )


def imported(size: int, folder: Path, gates: str) -> Any:
    """The module of torch's tests, which reads its settings from the environment."""
    os.environ.update(BACKEND=gates, WORLD_SIZE=str(size), TEMP_DIR=str(folder))
    os.environ["INIT_METHOD"] = f"file://{folder}/again"
    from torch.testing._internal.common_distributed import DistTestCases
    from torch.testing._internal.distributed import distributed_test

    for feature in ("ddp", "subgroup", "plugin"):
        DistTestCases.backend_feature[feature].add(NAME)
    if size > 2:  # groups of torch's tests are ranks 1 and 2; on fewer than eight only MPI may try
        os.environ["BACKEND"] = "mpi"
    return distributed_test


class _InProcess(unittest.TestCase):
    """What torch's `MultiProcessTestCase` gives its tests, without processes."""

    world: Communicator
    backend: str
    folder: Path
    module: Any
    gates: str
    _made = 0  # process groups, each of which meets in a file of its own

    def setUp(self) -> None:
        super().setUp()
        self._environment = dict(os.environ)
        self.rank = self.world.rank
        self.file_name = str(self.folder / f"store-{self._made}")
        type(self)._made += 1
        self.world.barrier()
        for name in ("barrier", "test_dir", "init_dir"):
            (self.folder / name).mkdir(exist_ok=True)
        if self.rank == 0:
            for left in [*(self.folder / "barrier").iterdir(), *self.folder.glob("again*")]:
                left.unlink()
        self.module.Barrier.barrier_id = 0
        if not self._testMethodName.startswith(_BY_NAME):
            self.module.BACKEND = self.backend
        self.world.barrier()
        seconds = self.module.CUSTOM_PG_TIMEOUT.get(self._testMethodName, 60)
        dist.init_process_group(
            self.backend,
            init_method=self.init_method,
            world_size=self.world.size,
            rank=self.rank,
            timeout=timedelta(seconds=seconds),
        )

    def tearDown(self) -> None:
        self.module.BACKEND = self.gates
        self.module.Barrier.barrier_id = _LAST_BARRIER
        self.module.Barrier.sync(self.world.size)  # nobody's sockets close before all have ended
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(self._environment)
        # Some tests raise it: with torch, each is in a process of its own.
        torch._C._distributed_c10d.set_debug_level_from_env()
        super().tearDown()

    @property
    def init_method(self) -> str:
        return f"file://{self.file_name}"

    @property
    def world_size(self) -> str:
        return str(self.world.size)


def _skipping(test: Callable[[Any], None]) -> Callable[[Any], None]:
    """`test`, saying in words what it says by ending its process with a status."""

    @functools.wraps(test)
    def run(self: Any) -> None:
        try:
            test(self)
        except SystemExit as end:
            from torch.testing._internal.common_distributed import TEST_SKIPS

            reasons = [s.message for s in TEST_SKIPS.values() if s.exit_code == end.code]
            self.skipTest(reasons[0] if reasons else f"exit status {end.code}")

    return run
