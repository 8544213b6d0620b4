"""`dist-ml verify`: runs in reproducible mode that are the same, and others that are not."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_world import on_mesh, settings
from safetensors.torch import load_file, save_file
from test_resume import BrokenOffError, break_off
from thread_world import run_ranks

from dist_ml.cli import main
from dist_ml.config.checkpoint import CheckpointConfig
from dist_ml.config.reproduce import ReproduceConfig
from dist_ml.train import logs
from dist_ml.train.run import train_run


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    yield
    logs.stop()


def run(folder: Path, data: int = 1, pipeline: int = 1, **changes: Any) -> str:
    """9 steps, saved after every third."""
    config = settings(
        hidden=(7, 6),
        precision="fp32",
        clip_norm=0.2,
        epochs=3,
        reproduce=ReproduceConfig(4),
        checkpoint=CheckpointConfig(3, keep_last=9),
    )
    config = on_mesh(dataclasses.replace(config, folder=str(folder), resume="auto"), data, pipeline)
    config = dataclasses.replace(config, **changes)
    try:
        run_ranks(data * pipeline, lambda comm: train_run(config, comm))
    finally:
        logs.stop()
    return str(folder)


@pytest.fixture
def whole(tmp_path: Path) -> str:
    return run(tmp_path / "whole")


def verified(capsys: pytest.CaptureFixture[str], *runs: object) -> tuple[int, str]:
    capsys.readouterr()
    status = main.main(["verify", *map(str, runs)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


SAME = "the same to the last bit: 24 values, 3 checkpoints, 1 final weights\n"


def test_runs_on_other_meshes_are_the_same(
    whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = run(tmp_path / "parts", data=2, pipeline=2)
    assert verified(capsys, whole, parts) == (0, SAME)


def test_a_run_that_went_on_elsewhere_is_the_same(
    whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        break_off(broken, at=5)
        with pytest.raises(BrokenOffError):
            run(tmp_path / "parts", data=2)
    assert verified(capsys, whole, tmp_path / "parts")[0] == 1  # it has no end
    run(tmp_path / "parts", data=4)
    assert verified(capsys, whole, tmp_path / "parts") == (0, SAME)


def test_the_first_step_and_tensor_that_differ_are_named(
    whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = dataclasses.replace(settings().optimizer, momentum=0.6)
    other = run(tmp_path / "other", optimizer=optimizer)
    status, words = verified(capsys, whole, other)
    assert status == 1
    assert words.startswith("different at step 2: loss 0.")
    unlogged = run(tmp_path / "unlogged", optimizer=optimizer, log_every=100)
    status, words = verified(capsys, whole, unlogged)
    assert status == 1
    assert words.startswith("different at step 3: model/layers.0.weight in 35 of 35 elements, ")


def test_one_bit_of_the_final_weights_is_found(
    whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run(tmp_path / "other")
    file = tmp_path / "other" / "checkpoints" / "model.safetensors"
    weights = load_file(file)
    weights["layers.1.bias"].view(torch.int32)[4] ^= 1
    save_file(weights, file)
    status, words = verified(capsys, whole, other)
    assert status == 1
    assert words.startswith("different at the end: layers.1.bias in 1 of 6 elements, first [4]: ")


def test_what_is_no_run_or_has_nothing_in_common_is_told(
    whole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, words = verified(capsys, whole, tmp_path / "nowhere")
    assert (status, "is no folder" in words) == (2, True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("{}")
    status, words = verified(capsys, whole, tmp_path / "empty")
    assert (status, "no final weights in common" in words) == (2, True)
    assert verified(capsys, whole)[0] == 2
    (file,) = Path(whole).glob("checkpoints/step-6/rank-0000.safetensors")
    with file.open("ab") as damaged:
        damaged.write(b"x")
    status, words = verified(capsys, whole, whole)
    assert (status, "step-6" in words) == (2, True)
