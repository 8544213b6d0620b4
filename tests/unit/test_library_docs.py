"""The Python of the README and of docs runs as it stands there, and the site file is one."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from thread_world import run_ranks
from torch.utils.data import TensorDataset

import dist_ml
from dist_ml import script
from dist_ml.comm import mpi
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config import site

ROOT = Path(__file__).parents[2]


def snippets(file: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


@pytest.fixture
def _not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "_meshes", [])
    assert not mpi.launched()


class Classifier(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 2)


@pytest.mark.usefixtures("_not_started")
@pytest.mark.parametrize("file", ["README.md", "docs/library.md"])
def test_the_script_trains(file: str) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(40, 5)
    dataset = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    names: dict[str, Any] = {"MyModel": Classifier, "dataset": dataset}
    exec(snippets(file)[0], names)
    assert isinstance(names["model"], dist_ml.DataParallel)
    first = Classifier()
    loss = torch.nn.functional.cross_entropy
    trained = names["model"].module
    assert loss(trained(inputs), dataset.tensors[1]) < loss(first(inputs), dataset.tensors[1])


def test_the_whole_trainer_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = [(torch.full((3,), float(label)), label) for label in (0, 1) * 20]
    names: dict[str, Any] = {
        "dist_ml": dist_ml,
        "MyBody": lambda: torch.nn.Linear(3, 4),
        "MyHead": lambda: torch.nn.Linear(4, 2),
        "training_samples": samples,
        "test_samples": samples[:10],
    }
    exec(snippets("docs/library.md")[1], names)
    assert names["summary"]["status"] == "finished"
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()


def test_a_loop_saves_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, steps = torch.nn.Linear(3, 2), []
    names = {
        "dist_ml": dist_ml,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "mesh": Communicator(Loopback()),
        "train_one_step": lambda *_: steps.append(len(steps)),
    }
    for num_steps in (20, 40):
        exec(snippets("docs/library.md")[2], names)
        assert len(steps) == num_steps
    assert names["saved"] == (20, {"epoch": 0})


@pytest.mark.usefixtures("_not_started")
def test_sharded_matrices_are_multiplied() -> None:
    names: dict[str, Any] = {"dist_ml": dist_ml, "mesh": dist_ml.init()}
    exec(snippets("docs/library.md")[3], names)
    a, b = names["a"].gather(), names["b"].gather()
    torch.testing.assert_close(names["whole"], a @ b, rtol=1e-4, atol=1e-4)
    assert isinstance(names["c"], dist_ml.ShardedMatrix)


def test_pieces_are_saved_and_read(tmp_path: Path) -> None:
    def body(comm: Communicator) -> None:
        half, parameter = torch.full((4, 4), float(comm.rank)), torch.empty(4, 4)
        names = {"comm": comm, "folder": tmp_path, "step": 3, "half": half, "parameter": parameter}
        exec(snippets("docs/checkpoints.md")[0], names)
        assert names["weight"][:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]  # type: ignore[index]
        assert torch.equal(parameter, half)

    run_ranks(2, body)


def test_matrices_in_other_layouts_are_multiplied() -> None:
    def body(comm: Communicator) -> None:
        names: dict[str, Any] = {"comm": comm, "m": 60, "k": 70, "n": 80}
        exec(snippets("docs/gemm.md")[0], names)
        a, b, c = (names[name].gather() for name in "abc")
        if comm.rank == 0:
            torch.testing.assert_close(c, a @ b, rtol=1e-4, atol=1e-4)

    run_ranks(2, body)


def test_the_site_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(snippets("docs/cluster.md", "yaml")[0])
    assert site.load(tmp_path / "site.yaml").options == ("--qos=high", "--exclusive")


# Those of experiments.md are run by test_experiment_plan.py, diffs by tests/test_user_scripts.py.
BLOCKS = {
    "README.md": 1, "docs/library.md": 7, "docs/checkpoints.md": 1, "docs/gemm.md": 1,
    "docs/cluster.md": 1, "docs/experiments.md": 1,
}  # fmt: skip


def test_every_block_is_run() -> None:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {
        file.relative_to(ROOT).as_posix(): len(re.findall("^```[a-z]", file.read_text(), re.M))
        for file in files
    }
    assert {name: number for name, number in found.items() if number} == BLOCKS


@pytest.mark.parametrize("name", dist_ml.__all__)
def test_every_public_name_is_there_and_tells_what_it_is(name: str) -> None:
    assert getattr(dist_ml, name).__doc__


def test_the_reference_has_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="makes the reference: pip install dist_ml[docs]")
    command = [sys.executable, ROOT / "docs" / "reference.py", tmp_path]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    page = (tmp_path / "dist_ml.html").read_text()
    assert all(f'id="{name}"' in page for name in dist_ml.__all__ if name != "__version__")


@pytest.mark.usefixtures("_not_started")
def test_the_parts_train() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 5), torch.randn(40, 2)
    batches = [(inputs[i : i + 10], targets[i : i + 10]) for i in range(0, 40, 10)] * 10
    losses: list[float] = []
    model = torch.nn.Linear(5, 2)
    names = {
        "mesh": dist_ml.init(),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "batches": batches,
        "my_share_of": lambda batches, rank, size: batches if (rank, size) == (0, 1) else [],
        "loss_sum": lambda outputs, targets: (outputs - targets).square().sum(),
        "global_batch_size": 10,
        "losses": losses,
    }
    code = snippets("docs/library.md")[-1]
    code = code.replace("    optimizer.step()", "    optimizer.step(); losses.append(mean_loss)")
    exec(code, names)
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
