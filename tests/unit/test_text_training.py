"""Training a Transformer on text, on images and on features: one process' numbers on data and
pipeline meshes; and what a trained model writes.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.train import TrainConfig
from dist_ml.train import text_sample
from dist_ml.train.build import build_mesh, build_trainer
from dist_ml.train.evaluate import evaluate_run
from dist_ml.train.run import train_run
from dist_ml.train.text_sample import drawn, readable, write_text
from tests.pipeline_world import Trained, assert_same, on_mesh, settings, train
from tests.text_world import SGD, text_config
from tests.thread_world import run_ranks

VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {"model": {"positions": "learned"}, "optimizer": SGD},
    "tied": {"model": {"tied": True}, "clip_norm": 0.1},
}


@functools.cache
def alone(variant: str) -> Trained:
    return train(Communicator(Loopback()), text_config(**VARIANTS[variant]), num_steps=3)


@pytest.mark.parametrize(
    ("variant", "data", "pipeline", "choices"),
    [
        ("rotary", 3, 1, {}),
        ("rotary", 2, 2, {"name": "zb_h1"}),
        ("rotary", 1, 4, {"name": "chimera"}),
        ("learned", 1, 2, {"name": "zb_v", "recompute": True}),
        ("learned", 1, 8, {"name": "gpipe"}),
        ("tied", 3, 1, {}),
        ("tied", 1, 2, {"name": "one_f_one_b"}),
        ("tied", 1, 4, {"name": "chimera"}),
    ],
    ids=lambda value: str(value),
)
def test_every_mesh_trains_as_one_process(
    variant: str, data: int, pipeline: int, choices: dict[str, Any]
) -> None:
    wanted = on_mesh(text_config(**VARIANTS[variant]), data, pipeline, **choices)
    found = run_ranks(data * pipeline, lambda comm: train(comm, wanted, num_steps=3))
    assert_same(found, alone(variant))


def test_losses_are_means_over_tokens() -> None:
    """At first about that of guessing among 256."""
    assert alone("rotary").losses[0] == pytest.approx(6.0, abs=0.5)
    assert 0 <= alone("rotary").correct[0][0] <= 13 * 6


def test_an_encoder_of_features_trains_as_one_process() -> None:
    data = dataclasses.replace(settings().data, num_features=12)
    wanted = text_config(data=data, model={"positions": "learned"}, optimizer=SGD)
    expected = train(Communicator(Loopback()), wanted, num_steps=3)
    meshed = on_mesh(wanted, 2, 2, name="one_f_one_b")
    assert_same(run_ranks(4, lambda comm: train(comm, meshed, num_steps=3)), expected)


def test_accumulation_changes_nothing() -> None:
    found = train(Communicator(Loopback()), text_config(accumulation=4), num_steps=3)
    assert_same([found], alone("rotary"))


def written(comm: Communicator, wanted: TrainConfig) -> str:
    trainer = build_trainer(wanted, build_mesh(wanted, comm))
    list(trainer.epoch(0))
    return write_text(trainer, seed=5)


def test_all_meshes_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond the length of a window."""
    monkeypatch.setattr(text_sample, "NUM_WRITTEN", 12)
    (expected,) = {written(Communicator(Loopback()), text_config()) for _ in range(2)}
    assert len(expected) >= 6 + 12
    for data, pipeline in ((2, 2), (1, 4)):
        name = "one_f_one_b" if pipeline < 4 else "chimera"
        wanted = on_mesh(text_config(), data, pipeline, name=name)
        texts = run_ranks(data * pipeline, lambda comm, wanted=wanted: written(comm, wanted))  # type: ignore[misc]
        assert set(texts) == {expected}


@pytest.mark.parametrize("length", [3, 6, 40])
def test_what_is_written_follows_what_the_model_saw_last(length: int) -> None:
    """A model that is sure of the next letter after the last, in windows shorter and longer than
    what is known.
    """

    def counting(inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.shape == (1, length)
        return 1e3 * torch.nn.functional.one_hot((inputs + 1 - 65) % 26 + 65, 256)

    first = torch.tensor([[65 + place % 26 for place in range(length)]])
    trainer = SimpleNamespace(
        dataset=SimpleNamespace(
            test=SimpleNamespace(num_features=length, batch=lambda _: SimpleNamespace(inputs=first))
        ),
        mesh=SimpleNamespace(world=Communicator(Loopback())),
        outputs=counting,
    )
    text = write_text(trainer, 0)  # type: ignore[arg-type]
    begun = min(length, text_sample.NUM_PROMPT)
    letters = [chr(65 + place % 26) for place in range(begun + text_sample.NUM_WRITTEN)]
    assert text == "".join(letters)


def test_a_slow_model_stops_writing_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sample, "LIMIT_SECONDS", 0.0)
    trainer = build_trainer(text_config(), build_mesh(text_config(), Communicator(Loopback())))
    start = time.monotonic()
    first = bytes(trainer.dataset.test.batch(torch.zeros(1, dtype=torch.int64).numpy()).inputs[0])
    assert write_text(trainer, 0) == readable(first)
    assert time.monotonic() - start < 5


def test_tokens_are_drawn_as_their_probabilities() -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.0, 2.0])
    scaled = torch.exp(logits.double() / text_sample.TEMPERATURE)
    numbers = [(i + 0.5) / 10_000 for i in range(10_000)]
    counts = torch.bincount(torch.tensor([drawn(logits, number) for number in numbers]))
    torch.testing.assert_close(counts.double() / 10_000, scaled / scaled.sum(), atol=2e-4, rtol=0)
    assert (drawn(logits, 0.0), drawn(logits, 1.0)) == (0, 3)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\tb\nc", "a    b\nc"),
        ("ü…".encode(), "ü…"),
        (b"\x1b[2J\x07\r", "\\x1b[2J\\x07\\x0d"),
        (b"\xff\xc3", "\\xff\\xc3"),
    ],
)
def test_no_byte_moves_the_cursor(content: bytes, text: str) -> None:
    assert readable(content) == text


def test_a_run_on_text_leaves_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sample, "NUM_WRITTEN", 12)
    wanted = text_config(folder=str(tmp_path / "run"), epochs=1)
    summary = train_run(wanted, Communicator(Loopback()))
    shown = capsys.readouterr().out
    assert "continued by the model" in shown
    assert f"bits per byte   {summary['test_bits_per_byte']:.4g}" in shown
    stored = (tmp_path / "run" / "sample.txt").read_text()
    assert stored == summary["text_sample"] + "\n"
    assert all(f"  {line}" in shown for line in stored.splitlines())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all(0 <= line["train_accuracy"] < 0.5 for line in lines if "train_accuracy" in line)
    again = evaluate_run(tmp_path / "run", Communicator(Loopback()))
    assert again["test_bits_per_byte"] == summary["test_bits_per_byte"]


def test_a_run_on_other_data_writes_nothing(tmp_path: Path) -> None:
    wanted = settings(folder=str(tmp_path / "run"), epochs=1)
    assert "text_sample" not in train_run(wanted, Communicator(Loopback()))
    assert not (tmp_path / "run" / "sample.txt").exists()
