"""`dist-ml checkpoint`: what it shows, finds, writes and reads."""

import json
import pathlib
import pickle
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from dist_ml.checkpoint import state_dict, torch_dcp_metadata
from dist_ml.checkpoint.reader import open_checkpoint
from dist_ml.checkpoint.state_dict import weights_of
from dist_ml.cli import main
from tests.checkpoint_world import CUTS, FullDisk, save_from, state

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


NAMED = [
    (pathlib, "PosixPath"),
    (dcp.metadata, "Metadata"),
    (dcp.metadata, "TensorProperties"),
    (torch.serialization, "_get_layout"),
    (torch, "Size"),
    (torch, "float32"),
]


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_a_pickle_from_elsewhere_sets_nothing(
    module: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its operation BUILD, on a class, a function or a value that it may name."""
    (tmp_path / "dcp").mkdir()
    state = pickle.dumps((None, {"hostile": 1}), protocol=2)[2:-1]  # without PROTO and STOP
    hostile = b"".join([b"c", module.__name__.encode(), b"\n", name.encode(), b"\n", state, b"b."])
    (tmp_path / "dcp" / ".metadata").write_bytes(hostile)
    said(capsys, "import", tmp_path / "dcp", tmp_path / "new", "--format", "dcp", status=2)
    touched = [getattr(module, name), *torch_dcp_metadata._RECORDS.values(), PurePosixPath]
    assert not any(hasattr(one, "hostile") for one in touched)


def elsewhere(found: Any) -> None:
    for info in found.storage_data.values():
        info.relative_path = f"../{info.relative_path}"


def holes(found: Any) -> None:
    for entry in found.state_dict_metadata.values():
        entry.chunks = []


@pytest.mark.parametrize(
    ("change", "words"),
    [(elsewhere, "is no plain name of a file"), (holes, "its parts are not the whole")],
)
def test_metadata_that_says_what_it_should_not(
    change: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dcp.save({"x": torch.ones(2)}, storage_writer=dcp.FileSystemWriter(tmp_path / "dcp"))
    file = tmp_path / "dcp" / ".metadata"
    found = pickle.loads(file.read_bytes())
    change(found)
    file.write_bytes(pickle.dumps(found))
    argv = ["import", tmp_path / "dcp", tmp_path / "new", "--format", "dcp"]
    assert words in said(capsys, *argv, status=2)


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("command", ["show", "verify", "export"])
@pytest.mark.parametrize("name", ["COMMIT", "index.json", "rank-0001.safetensors"])
@pytest.mark.parametrize("made", [Path.mkdir, loop])
def test_what_can_not_be_read_is_told_in_words(
    command: str, name: str, made: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "step-2" / name
    file.unlink()
    made(file)
    target = [run / "file"] if command == "export" else []
    if command == "show" and name.startswith("rank"):
        assert "step      2" in said(capsys, command, run)
        return
    status = 1 if command == "verify" and made is Path.mkdir and name.startswith("rank") else 2
    main.main(["checkpoint", command, str(run), *map(str, target)])
    told = "".join(capsys.readouterr())
    assert str(file) in told
    assert "Traceback" not in told
    said(capsys, command, run, *target, status=status)
    assert not list(run.glob("file*"))


def test_what_can_not_be_written_is_told_in_words(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    loop(tmp_path / "loop")
    for target in ("folder", "gone/file", "file/file", "loop/file"):
        assert "can't be written" in said(capsys, "export", run, tmp_path / target, status=2)
    for target in ("file", "file/new", "loop"):
        refused = said(capsys, "export", run, tmp_path / target, "--format", "dcp", status=2)
        assert str(tmp_path / target) in refused
    said(capsys, "export", run, tmp_path / "weights")
    for target in ("file", "file/new", "loop"):
        refused = said(capsys, "import", tmp_path / "weights", tmp_path / target, status=2)
        assert str(tmp_path / target.split("/")[0]) in refused
    for source in ("folder", "loop"):
        for form in ("safetensors", "dcp"):
            argv = ["import", tmp_path / source, tmp_path / "new", "--format", form]
            assert f"{source} can't be read" in said(capsys, *argv, status=2)
    monkeypatch.setattr(state_dict, "Files", lambda: FullDisk(3))
    assert "No space left" in said(capsys, "export", run, tmp_path / "full", status=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["file", "folder", "loop", "run", "weights"]


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
