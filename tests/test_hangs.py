"""A rank stops, sleeps, leaves a collective out or calls another one, on real ranks: the job ends
soon and names the rank and the call, and its flight records tell them again. A rank that is killed:
`test_dead_ranks.py`.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_ml.cli import hang
from dist_ml.launch import mpiexec
from tests.torch_flight import analysed

LIMIT_SECONDS = 3.0  # of a step
SOON_SECONDS = 10.0  # after it
# Trains; after the third step the last rank does what the first argument says.
PROGRAM = f"""
import itertools, os, signal, sys, time
from pathlib import Path
from dist_ml.cli import arguments, compose, ranks
from dist_ml.comm.allreduce.ring import Ring
from dist_ml.comm.request import Request
from dist_ml.config.convert import from_mapping
from dist_ml.config.train import TrainConfig
from dist_ml.train.run import train_run
from dist_ml.train.stop_signals import StopSignals
from dist_ml.train.trainer import Trainer

FIXED = ["data=synthetic", "model.hidden=[300,300]", "folder=run",
         "fault.watchdog_seconds={LIMIT_SECONDS}"]
request = arguments.parse([*FIXED, *sys.argv[2:]], "test", "train")
config = from_mapping(TrainConfig, compose.composed(request))

def stop(world):
    os.kill(os.getpid(), signal.SIGSTOP)

def sleep(world):
    time.sleep(60)

def fail(world):
    time.sleep(0.5)  # until the others wait for it
    raise ValueError("a bug")

def call_another(world):
    world.barrier()

def leave_out(world):
    start = Ring.start
    def skip(self, x, op="sum"):
        Ring.start = start
        return Request()
    Ring.start = skip

def body(world):
    if world.rank == world.size - 1:
        epoch, number = Trainer.epoch, itertools.count()
        def failing(self, *args, **kw):
            for step in epoch(self, *args, **kw):
                if next(number) == 2:
                    Path("failed-at").write_text(str(time.time()))
                    globals()[sys.argv[1]](world)
                yield step
        Trainer.epoch = failing
    train_run(config, world, signals=signals)
    return 0

with StopSignals() as signals:
    sys.exit(ranks.run_on_ranks(body))
"""
THREADED = ("allreduce.overlap=thread", "allreduce.bucket_bytes=4096")
BLOCKING = ("allreduce=native", "allreduce.overlap=none")
SPARSE = ("sparse=topk", "sparse.allreduce=oktopk", "sparse.overlap=2")
NEVER_CAME = "rank 2 .*never came to allreduce"
Ended = tuple[float, str]


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs PROGRAM on three ranks: seconds from the failure to the job's end, and its words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(flavour: str, what: str, *overrides: str) -> Ended:
        completed = mpiexec.run(
            [sys.executable, "program.py", what, *overrides],
            3,
            flavour,
            time_limit_seconds=100.0,
            capture=True,
            environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        lasted = time.time() - float((tmp_path / "failed-at").read_text())
        assert not completed.timed_out, completed.stderr[-3000:]
        assert completed.returncode != 0
        assert completed.stderr.count("error on rank") == 1, completed.stderr[-3000:]
        return lasted, completed.stderr

    return run


def retold(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `dist-ml doctor hang` says of the run."""
    capsys.readouterr()
    assert hang.main(["run", *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("flavour", "what", "overrides", "words"),
    [
        ("mpich", "stop", BLOCKING, NEVER_CAME),
        ("openmpi", "stop", ("mesh.pipeline=3",), "rank 2 .*never made its side of receive from"),
        ("mpich", "sleep", SPARSE, "rank 2 .*it stood in test_.*program.py:.* sleep"),
        ("openmpi", "sleep", ("allreduce=shared_memory", *THREADED), f"{NEVER_CAME} by shared_m"),
        ("openmpi", "call_another", BLOCKING, f"{NEVER_CAME} .*it waits in barrier .*program.py"),
    ],
    indirect=["flavour"],
)
def test_a_rank_that_does_not_come(
    flavour: str,
    what: str,
    overrides: tuple[str, ...],
    words: str,
    ended: Callable[..., Ended],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lasted, told = ended(flavour, what, *overrides)
    assert lasted < LIMIT_SECONDS + SOON_SECONDS, told
    assert "are the limit" in told
    written = retold(capsys)
    for text in (told, written):
        assert re.search(words, text), text
    if what == "stop":
        assert "is stopped (SIGSTOP" in told
    else:
        assert "rank 2, MainThread, innermost last:" in written
        assert "program.py" in written


@pytest.mark.parametrize("flavour", ["openmpi"], indirect=True)
def test_a_rank_that_raises(
    flavour: str, ended: Callable[..., Ended], capsys: pytest.CaptureFixture[str]
) -> None:
    lasted, told = ended(flavour, "fail", *BLOCKING)
    assert lasted < SOON_SECONDS / 2
    assert "error on rank 2 of 3" in told
    written = retold(capsys)
    assert "the run said: rank 2 on" in written
    assert "ValueError: a bug" in written
    assert re.search(NEVER_CAME, written), written


@pytest.mark.parametrize("flavour", ["mpich"], indirect=True)
def test_a_rank_that_leaves_a_collective_out(
    flavour: str,
    ended: Callable[..., Ended],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its next bucket meets the others' one that it left out: MPI fails, or it hangs."""
    lasted, told = ended(flavour, "leave_out", "allreduce=ring", *THREADED)
    assert lasted < LIMIT_SECONDS + SOON_SECONDS, told
    words = r"rank 2 .*(left out|came elsewhere than to) allreduce by ring sum float32"
    written = retold(capsys, "--export", "traces")
    for text in (told, written):
        assert re.search(words, text), text
    torch_says = analysed(Path("traces"), caplog)
    sequence = re.search(r"\(number (\d+) of", told)
    assert sequence is not None
    assert f"sequence number: {sequence[1]} has errors" in torch_says
    assert {*re.findall(r"Culprit rank (\d)", torch_says)} in ({"2"}, {"0", "1"})
