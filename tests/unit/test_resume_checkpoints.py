"""From which checkpoint a run goes on, and from which it doesn't: killed while it saves, copied,
damaged, another program's, longer than the run is to be.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_worlds import BrokenOffError, break_off, broken_off, told, train, weights
from train_worlds import changed

from dist_ml.bench.killed_run import steps_gone_on_from
from dist_ml.checkpoint import writer
from dist_ml.checkpoint.checksum import checksum
from dist_ml.checkpoint.piece import Piece
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError, DataError
from dist_ml.placement import whole
from dist_ml.train import load_state, logs, resume
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.results import leave_results
from dist_ml.train.run_folder import RunFolder
from dist_ml.train.trainer import Trainer
from tests.checkpoint_world import Killed, KilledFiles
from tests.thread_world import run_ranks

ALONE = Communicator(Loopback())


@pytest.fixture(autouse=True)
def no_logs() -> Any:
    yield
    logs.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, every=3)
    return folder


def same(folder: Path, other: Path) -> bool:
    """Every loss and every weight, to the last bit."""
    expected = weights(other)
    return told(folder) == told(other) and all(
        torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items()
    )


def test_killed_at_any_operation_of_a_save_it_goes_on_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what is committed by then: a run of three steps, killed while it saves the second."""
    train(tmp_path / "whole", every=1, epochs=1)
    with monkeypatch.context() as broken:
        break_off(broken, at=1)
        with pytest.raises(BrokenOffError):
            train(tmp_path / "begun", every=1, epochs=1)
    went_on: list[int] = []
    while True:
        folder, files = tmp_path / f"killed{len(went_on)}", KilledFiles(len(went_on))
        shutil.copytree(tmp_path / "begun", folder)
        with monkeypatch.context() as killing:
            killing.setattr(writer, "Files", lambda files=files: files)
            break_off(killing, at=2)
            with pytest.raises((Killed, BrokenOffError)) as ended:
                train(folder, every=1, epochs=1)
        if ended.type is BrokenOffError:
            break
        last = max(int(path.parent.name.removeprefix("step-")) for path in committed(folder))
        train(folder, every=1, epochs=1)
        assert same(folder, tmp_path / "whole"), len(went_on)
        assert steps_gone_on_from(folder) == [1, last]
        went_on.append(last)
    assert went_on == sorted(went_on)
    assert 4 < went_on.count(1) < len(went_on)


def committed(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("step-?/COMMIT"))


def copied(undisturbed: Path, folder: Path) -> Path:
    """The last checkpoint of a run, without the run."""
    target = folder / "checkpoints" / "step-9"
    shutil.copytree(undisturbed / "checkpoints" / "step-9", target)
    return target


def test_a_copied_checkpoint_is_held_against_the_settings(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    copied(undisturbed, folder)
    for changes in ({"seed": 4}, {"optimizer": {"lr": 0.05}}):
        with pytest.raises(ConfigError, match=r"step-9 was trained with other settings.* -> "):
            train(folder, every=3, **changes)
        assert not (folder / "log").exists()
    summary = train(folder, every=3)
    assert (
        summary["test_loss"] == json.loads((undisturbed / "summary.json").read_text())["test_loss"]
    )
    assert "goes on from step 9 of" in capsys.readouterr().out


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The index as another program would have made it."""
    content = json.loads((path / "index.json").read_text())
    change(content)
    (path / "index.json").write_text(json.dumps(content))
    commit = {"index_checksum": checksum((path / "index.json").read_bytes())}
    (path / "COMMIT").write_text(json.dumps(commit))


@pytest.mark.parametrize("part", ["config", "mesh", "ranks", "progress", "interval"])
def test_a_header_without_what_a_run_needs(part: str, undisturbed: Path, tmp_path: Path) -> None:
    rewritten(copied(undisturbed, tmp_path), lambda index: index["header"].pop(part))
    with pytest.raises(DataError, match=f"step-9 is no checkpoint of a run: .* no {part};"):
        train(tmp_path, every=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["header"]["progress"].pop("num_samples"), r"no progress\.num_samples"),
        (lambda index: index["header"]["ranks"].clear(), "no state of each rank"),
        (lambda index: index["header"]["ranks"][0].pop("updater"), "holds no state of a run"),
        (lambda index: index.update(format="theirs"), "its format is 'theirs' .* another program"),
        (lambda index: index.update(version=2), "its version is 2, and this reads 1"),
    ],
)
def test_a_checkpoint_of_something_else(
    change: Any, words: str, undisturbed: Path, tmp_path: Path
) -> None:
    """Also where there is an older one of the run: it isn't damaged, and not passed over."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "summary.json").unlink()
    rewritten(folder / "checkpoints" / "step-9", change)
    with pytest.raises(DataError, match=words):
        train(folder, every=3)


def test_weights_that_somebody_else_saved(tmp_path: Path) -> None:
    piece = Piece("model/x", (2,), whole((2,)), torch.ones(2))
    writer.save(tmp_path / "checkpoints", 4, [piece], {"epoch": 2}, ALONE)
    with pytest.raises(DataError, match=r"step-4 is no checkpoint of a run: its header has no co"):
        train(tmp_path)


def test_a_damaged_checkpoint_is_told_and_moved_aside(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    broken_off(folder, monkeypatch, at=8, every=3)
    with (folder / "checkpoints" / "step-6" / "rank-0000.safetensors").open("ab") as file:
        file.write(b"x")
    train(folder, every=3)
    assert same(folder, undisturbed)
    assert steps_gone_on_from(folder) == [3]
    assert capsys.readouterr().out.count("step-6 is damaged, so one before it is taken: ") == 1
    assert "step-6 is damaged" in (folder / "log" / "rank-0000.log").read_text()
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert kept == {"step-6", "step-6.damaged", "step-9"}


def test_of_a_run_that_has_finished_no_checkpoint_is_read(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    monkeypatch.setattr(resume, "newest", None)
    assert train(folder, every=3)["status"] == "finished"
    with pytest.raises(ConfigError, match="seed: 3 -> 4"):
        train(folder, every=3, seed=4)


def test_fewer_epochs_than_were_trained_are_refused(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    with pytest.raises(ConfigError, match=r"ends after step 6, but .* 9 steps .* 3 epochs") as no:
        train(folder, every=3, epochs=2, resume_force=True)
    assert no.value.agreed
    assert (folder / "summary.json").exists(), "the refusal left no trace"


def test_a_pipeline_that_has_only_to_end_makes_no_bubble_up(tmp_path: Path) -> None:
    """It was resumed after its last step, whose times nobody knows any more."""
    config = changed(mesh={"data": 1, "pipeline": 2}, folder=str(tmp_path))
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()

    def body(world: Communicator) -> list[bool]:
        trainer = build_trainer(config, build_mesh(config, world))
        before = leave_results(trainer, folder, config)
        trainer.step(0, 0)
        after = leave_results(trainer, folder, config)
        trainer.close()
        return ["bubble" in before, "bubble" in after]

    assert run_ranks(2, body) == [[False, True]] * 2


def test_a_rank_asks_for_its_state_before_it_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It communicates: where a rank has raised already, the others would wait for it."""
    broken_off(tmp_path, monkeypatch, at=8, every=3)
    inside, asked = [False], []
    state_dict, region = Trainer.state_dict, load_state.raise_on_all_ranks

    class Region:
        def __init__(self, comm: Communicator) -> None:
            self.comm = comm

        def __enter__(self) -> None:
            inside[0] = True

        def __exit__(self, *_: object) -> None:
            inside[0] = False
            with region(self.comm):
                pass

    def noted(self: Trainer) -> Any:
        asked.append(inside[0])
        return state_dict(self)

    monkeypatch.setattr(load_state, "raise_on_all_ranks", Region)
    monkeypatch.setattr(Trainer, "state_dict", noted)
    train(tmp_path, every=0)
    assert asked == [False]
