"""Runs that are broken off and go on come to what one does that isn't."""

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_worlds import BrokenOffError, break_off, broken_off, told, train, weights

from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.writer import save
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.errors import ConfigError, DataError
from dist_ml.placement import whole
from dist_ml.train import logs, stored_run

TOTALS = ("num_steps", "num_skipped", "train_loss", "test_loss", "test_accuracy", "words_sent")


@pytest.fixture(autouse=True)
def no_logs() -> Any:
    yield
    logs.stop()


@pytest.mark.parametrize("at", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("every", [2, 3])
def test_a_run_that_was_broken_off_ends_like_one_that_was_not(
    at: int, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off before the first checkpoint, at one, between two, at and within epochs."""
    whole = train(tmp_path / "whole", every, resume=None, asynchronous=at == 4)
    broken_off(tmp_path / "broken", monkeypatch, at, every)
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 77, "loss"')  # a line that was cut short
    summary = train(tmp_path / "broken", every, asynchronous=at == 6)
    assert summary["status"] == "finished"
    assert [summary[key] for key in TOTALS] == [whole[key] for key in TOTALS]
    assert summary["num_saved"] == whole["num_saved"] == 9 // every
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "broken")[name])
    log = (tmp_path / "broken" / "log" / "rank-0000.log").read_text()
    assert log.count("rank 0 on") == 2, "the log is continued"
    assert f"goes on from step {at // every * every} of" in log


def test_samples_and_seconds_are_those_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tmp_path / "run", monkeypatch, 7)
    summary = train(tmp_path / "run")
    assert summary["samples_per_second"] * summary["seconds"] == pytest.approx(90)
    assert summary["seconds"] >= summary["seconds_by_phase"]["forward"] > 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_signal_saves_after_the_step_that_it_meets(
    number: signal.Signals,
    asynchronous: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also without regular checkpoints."""
    folder = tmp_path / "run"
    monkeypatch.setenv("DIST_ML_LEAD_SECONDS", "60")
    with monkeypatch.context() as signalled:
        break_off(signalled, 4, lambda: os.kill(os.getpid(), number))
        summary = train(folder, 0, asynchronous)
    assert (summary["status"], summary["signal"]) == ("stopped", number.name)
    assert (summary["num_steps"], summary["lead_seconds"]) == (5, 60.0)
    assert 0 < summary["saved_in_seconds"] < 60
    assert f"stopped by {number.name} after step 5" in capsys.readouterr().out
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-5"]
    assert stored_run.read(folder).status == "stopped"
    whole = train(tmp_path / "whole", 0)
    assert train(folder, 0)["train_loss"] == whole["train_loss"]
    assert told(folder) == told(tmp_path / "whole")
    assert stored_run.read(folder).status == "finished"


def test_what_has_finished_is_told_again_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.j*")}
    capsys.readouterr()
    again = train(tmp_path / "run", resume=str(tmp_path / "run"))
    assert again == json.loads(json.dumps(first))
    assert f"run folder      {tmp_path / 'run'}" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.j*")}


def test_what_has_finished_and_saved_nothing_is_not_begun_again(tmp_path: Path) -> None:
    train(tmp_path / "run", 0)
    lines = told(tmp_path / "run")
    assert train(tmp_path / "run", 0)["status"] == "finished"
    with pytest.raises(ConfigError, match=r"epochs: 3 -> 4 \(before -> now\)"):
        train(tmp_path / "run", 0, epochs=4)
    with pytest.raises(ConfigError, match="has finished, and saved nothing to go on from"):
        train(tmp_path / "run", 0, epochs=4, resume_force=True)
    assert told(tmp_path / "run") == lines


def test_other_settings_are_refused_if_they_change_results_and_told_if_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run")
    rate = {"optimizer": {"lr": 0.05}}
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.1 -> 0\.05 \(before -> now\)") as no:
        train(tmp_path / "run", **rate)
    assert no.value.agreed
    assert stored_run.read(tmp_path / "run").status == "finished", "the refusal left no trace"
    summary = train(tmp_path / "run", epochs=4, log_every=3, resume_force=True, **rate)
    assert summary["num_steps"] == 12
    shown = capsys.readouterr().out
    assert "goes on from step 8 of" in shown
    for words in ("epochs: 3 -> 4", "log_every: 2 -> 3", "optimizer.lr: 0.1 -> 0.05"):
        assert f"changed: {words}" in shown


def test_places_without_a_run_and_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no run to go on with \(no config\.yaml there\)"):
        train(tmp_path / "run", resume=str(tmp_path / "nowhere"))
    train(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model\.hidden: \[6\] -> \[7\]"):
        train(tmp_path / "run", model={"hidden": (7,)})
    with pytest.raises(DataError, match="saved by another model"):
        train(tmp_path / "run", model={"hidden": (7,)}, resume_force=True)
    assert stored_run.read(tmp_path / "run").status == "finished"


def test_a_run_that_is_still_trained_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path / "run")
    other = (tmp_path / "run" / "log" / "rank-0000.log").open()
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is trained in by another process now"):
            train(tmp_path / "run")
    finally:
        other.close()
    train(tmp_path / "run")


def test_a_failed_run_goes_on_and_has_not_failed_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tmp_path / "run", monkeypatch, 5)
    logs.start(tmp_path / "run", 0)
    logs.record_failure(BrokenOffError())
    logs.stop()
    assert stored_run.read(tmp_path / "run").status == "failed"
    train(tmp_path / "run")
    assert stored_run.read(tmp_path / "run").status == "finished"


def test_a_run_begins_with_imported_weights(tmp_path: Path) -> None:
    """As `dist-ml checkpoint import` leaves them; of another model they are refused."""
    train(tmp_path / "first")
    folder = tmp_path / "run" / "checkpoints"
    pieces = [
        Piece(f"model/{name}", tuple(value.shape), whole(value.shape), value)
        for name, value in weights(tmp_path / "first").items()
    ]
    save(folder, 0, pieces, {"imported": "weights"}, Communicator(Loopback()))
    with pytest.raises(DataError, match="saved by another model"):
        train(tmp_path / "run", model={"hidden": (7,)})
    summary = train(tmp_path / "run", log_every=1)
    assert summary["num_steps"] == 9
    first = [line["loss"] for line in told(tmp_path / "first") if "loss" in line]
    assert told(tmp_path / "run")[0]["loss"] < 0.9 * first[0]
