"""A rank dies by SIGKILL in the middle of an exchange, and the launcher doesn't notice: the others
end by themselves, soon, and name it.

Each rank runs under a shell that lives on, which is what the launcher watches.
"""

import itertools
import re
import sys
import time
from pathlib import Path

import pytest

from dist_ml.flight import record_file
from dist_ml.flight.diagnosis import diagnose
from dist_ml.launch import mpiexec

LIMIT_SECONDS = 15.0
PROGRAM = """
import itertools, os, signal, sys, threading, time
from pathlib import Path
from dist_ml.cli import arguments, compose, ranks
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.pipeline_parallel.messages import StageMessages
from dist_ml.train import open_folder
from dist_ml.train.build import build_mesh, build_trainer

OVERRIDES = ["model.hidden=[300,300]", "folder=run", *sys.argv[1:]]
mapping = compose.composed(arguments.parse(OVERRIDES, "test", "train"))

def die():
    Path("died-at").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)

def body(world):
    open_folder.create("run", {}, world)
    config = from_mapping(TrainConfig, mapping)
    trainer = build_trainer(config, build_mesh(config, world))
    trainer.step(0, 0)
    if world.rank == world.size - 1:
        if trainer.pipeline is None:
            threading.Timer(0.5, die).start()
        else:  # while the others wait for its second gradient
            give, given = StageMessages.give, itertools.count()
            StageMessages.give = lambda *args, **kw: die() if next(given) else give(*args, **kw)
    while True:
        trainer.step(0, trainer.num_steps % trainer.sampler.steps_per_epoch)

sys.exit(ranks.run_on_ranks(body))
"""
EXCHANGES = {
    "blocking": ["allreduce=native"],
    "shared memory on a thread": [
        "allreduce=shared_memory",
        "allreduce.overlap=thread",
        "allreduce.bucket_bytes=4096",
    ],
    "hierarchical, polled": [
        "allreduce=hierarchical",
        "allreduce.overlap=poll",
        "allreduce.bucket_bytes=4096",
    ],
    "ring on a thread": [
        "allreduce=ring",
        "allreduce.overlap=thread",
        "allreduce.bucket_bytes=4096",
    ],
    "sparse on a thread": ["sparse=topk", "sparse.allreduce=oktopk", "sparse.overlap=2"],
    "pipeline": ["mesh.pipeline=3", "pipeline=one_f_one_b"],
    "pipeline both ways round": ["mesh.pipeline=3", "pipeline=zb_v", "model.hidden=[300,9,8,7,9]"],
}


# What waits inside MPI on both of them; what polls is the same on each.
BOTH = ("blocking", "pipeline")
RUNS = [(exchange, flavour) for exchange in BOTH for flavour in ("mpich", "openmpi")]
RUNS += zip(
    [exchange for exchange in EXCHANGES if exchange not in BOTH],
    itertools.cycle(["mpich", "openmpi"]),
    strict=False,
)


@pytest.mark.parametrize(("exchange", "flavour"), RUNS, indirect=["flavour"])
def test_the_others_end_soon_and_name_it(
    flavour: str, exchange: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    quoted = " ".join(f"'{word}'" for word in EXCHANGES[exchange])
    completed = mpiexec.run(
        ["sh", "-c", f"{sys.executable} program.py {quoted}; status=$?; sleep 60; exit $status"],
        3,
        flavour,
        time_limit_seconds=50.0,
        capture=True,
        environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    lasted = time.time() - float((tmp_path / "died-at").read_text())
    assert not completed.timed_out, completed.stderr[-3000:]
    assert lasted < LIMIT_SECONDS, lasted
    assert "rank 2 (process" in completed.stderr, completed.stderr[-3000:]
    assert "died while others waited for it" in completed.stderr
    assert completed.stderr.count("died while others waited") == 1, completed.stderr
    found = diagnose(record_file.read_folder(tmp_path / "run" / "log"))
    assert 2 in found.ranks, found
    if exchange.startswith("pipeline"):  # which rank waited where
        assert re.search(r"this rank was at \d[FBIW]\d", completed.stderr), completed.stderr[-3000:]
