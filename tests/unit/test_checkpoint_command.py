"""`dist-ml checkpoint`: what it shows, finds, writes and reads."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from dist_ml.checkpoint.reader import open_checkpoint
from dist_ml.checkpoint.state_dict import weights_of
from dist_ml.cli import main
from tests.checkpoint_world import CUTS, save_from, state

# torch says that there is no process group
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WEIGHTS = {
    name.removeprefix("model/"): tensor
    for name, tensor in state().items()
    if name.startswith("model/")
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 1 and 2, of two ranks."""
    for step in (1, 2):
        save_from(state(), tmp_path / "run" / "checkpoints", step, 2, CUTS["flat"])
    return tmp_path / "run"


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def said(capsys: pytest.CaptureFixture[str], *argv: object, status: int = 0) -> str:
    assert main.main(["checkpoint", *map(str, argv)]) == status
    captured = capsys.readouterr()
    return captured.err if status == 2 else captured.out


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/step-2"])
def test_show(run: Path, inside: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", run / inside)
    assert "step      2" in text
    assert "seed      3" in text
    assert "model/weight" in text
    assert "5x7" in text
    assert "140 bytes in 4" in text
    index = json.loads(said(capsys, "show", run / inside, "--json"))
    assert index["tensors"]["model/bias"]["shape"] == [7]


def test_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "verify", run).count("sound") == 2
    with (run / "checkpoints" / "step-2" / "rank-0001.safetensors").open("ab") as file:
        file.write(b"x")
    text = said(capsys, "verify", run, status=1)
    assert [line.split()[0] for line in text.splitlines()] == ["damaged", "sound"]
    refused = said(capsys, "export", run, run / "weights.safetensors", status=2)
    assert "rank-0001.safetensors has" in refused


def test_a_plain_state_dict_out_and_in(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.safetensors"
    assert said(capsys, "export", run, file).startswith("3 tensors")
    assert same(load_file(file))
    said(capsys, "import", file, tmp_path / "new")
    found = open_checkpoint(tmp_path / "new" / "step-0")
    assert same(weights_of(found))
    assert found.header == {"imported": str(file)}
    assert "holds checkpoints already" in said(capsys, "import", file, tmp_path / "new", status=2)
    prefixed = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    save_file({**prefixed, "other": torch.ones(1)}, file)
    said(capsys, "import", file, tmp_path / "newer", "--prefix", "module.")
    assert same(weights_of(open_checkpoint(tmp_path / "newer" / "step-0")))


def test_torch_reads_what_is_exported_as_dcp(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "export", run, tmp_path / "dcp", "--format", "dcp")
    found = {name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    dcp.load(found, storage_reader=dcp.FileSystemReader(tmp_path / "dcp"), no_dist=True)
    assert same(found)
    refused = said(capsys, "export", run, tmp_path / "dcp", "--format", "dcp", status=2)
    assert "isn't empty" in refused


def test_what_torch_writes_as_dcp_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = {"model": WEIGHTS, "step": 5, "lr": torch.ones(1)}
    dcp.save(nested, storage_writer=dcp.FileSystemWriter(tmp_path / "dcp"), no_dist=True)
    said(
        capsys,
        "import",
        tmp_path / "dcp",
        tmp_path / "new",
        "--format",
        "dcp",
        "--prefix",
        "model.",
    )
    assert same(weights_of(open_checkpoint(tmp_path / "new" / "step-0")))


class Attack:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.made,)


def test_a_pickle_from_elsewhere_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    arguments = ["import", tmp_path / "dcp", tmp_path / "new", "--format", "dcp"]
    assert "it wants " in said(capsys, *arguments, status=2)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["show", "nowhere"], "nowhere holds no committed checkpoint"),
        (["export", "nowhere", "file"], "nowhere holds no committed checkpoint"),
        (["import", "nowhere", "new"], "nowhere can't be read as safetensors"),
        (["import", "nowhere", "new", "--format", "dcp"], "nowhere can't be read as a checkpoint"),
        (["mend", "nowhere"], "invalid choice: 'mend'"),
        ([], "required"),
    ],
)
def test_mistakes(
    argv: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in said(capsys, *argv, status=2)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_from({"optimizer/x": torch.ones(1)}, tmp_path)
    assert "no name begins with model/" in said(capsys, "export", path, "file", status=2)
