"""Text: windows of a file's bytes, files that can't be used, and the objective of the next byte."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.config.convert import from_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.datasets import Dataset, open_dataset
from dist_ml.errors import ConfigError, DataError
from dist_ml.models import choose_objective
from dist_ml.train.evaluator import Evaluation


def open_text(file: Path | None = None, **fields: Any) -> Dataset:
    path = {} if file is None else {"path": str(file)}
    mapping = {"name": "text", "num_tokens": 8, "test_fraction": 0.2, **path, **fields}
    return open_dataset(from_mapping(DataConfig, mapping))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The bytes 0 … 99: 80 to train on, 20 to test on."""
    path = tmp_path / "counting"
    path.write_bytes(bytes(range(100)))
    return path


class TestWindows:
    def test_targets_are_the_next_bytes(self, file: Path) -> None:
        x, y, ids, num_items = open_text(file).train.batch(np.array([3, 0]))
        assert x.tolist() == [[*range(24, 32)], [*range(8)]]
        assert torch.equal(y, x + 1)
        assert (x.dtype, y.dtype, num_items) == (torch.int64, torch.int64, 16)
        assert x.is_contiguous()
        assert y.is_contiguous()
        assert ids.tolist() == [3, 0]

    def test_no_byte_for_testing_is_trained_on(self, file: Path) -> None:
        for stride in (1, 3, 8, 50):
            dataset = open_text(file, stride=stride)
            train, test = (
                split.batch(np.arange(split.num_samples)) for split in (dataset.train, dataset.test)
            )
            assert int(train.targets.max()) <= 79
            assert int(test.inputs.min()) == 80

    @pytest.mark.parametrize(
        ("stride", "starts"), [(None, range(0, 72, 8)), (1, range(72)), (7, range(0, 72, 7))]
    )
    def test_training_windows_begin_every_stride_bytes(
        self, file: Path, stride: int | None, starts: range
    ) -> None:
        train = open_text(file, stride=stride).train
        assert train.num_samples == len(starts)
        assert train.batch(np.arange(train.num_samples)).inputs[:, 0].tolist() == [*starts]

    def test_each_byte_is_tested_once_whatever_the_stride(self, file: Path) -> None:
        test = open_text(file, stride=1).test
        targets = test.batch(np.arange(test.num_samples)).targets.flatten()
        assert targets.tolist() == [*range(81, 97)]

    def test_what_a_split_says_of_itself(self, file: Path) -> None:
        for split in (open_text(file).train, open_text(file).test):
            assert (split.num_features, split.sample_shape) == (8, (8,))
            assert (split.num_outputs, split.task) == (256, "next_token")

    def test_the_whole_of_a_part_may_be_one_window(self, file: Path) -> None:
        dataset = open_text(file, num_tokens=19)
        assert dataset.test.num_samples == 1
        assert dataset.test.batch(np.zeros(1, np.int64)).targets[0, -1] == 99

    def test_fewer_can_be_asked_for_but_not_more(self, file: Path) -> None:
        assert open_text(file, num_train=2, num_test=1).train.num_samples == 2
        with pytest.raises(ConfigError, match=r"data.num_test=3 but .*counting holds 2 samples"):
            open_text(file, num_test=3)

    def test_no_batch_of_no_samples_fails(self, file: Path) -> None:
        x, y, _, num_items = open_text(file).train.batch(np.arange(0))
        assert (x.shape, y.shape, num_items) == ((0, 8), (0, 8), 0)


def test_the_packaged_text_is_a_book() -> None:
    dataset = open_text(num_tokens=64, test_fraction=0.1)
    train = dataset.train
    content = bytes(train.batch(np.arange(40)).inputs.flatten().tolist()).decode("ascii")
    assert "Alice was beginning to get very tired of sitting by her sister" in content
    num_bytes = 64 * (train.num_samples + dataset.test.num_samples)
    assert 148_408 - 3 * 64 < num_bytes < 148_408


class TestFilesThatCannotBeUsed:
    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing does not exist; give a file, or leave"):
            open_text(tmp_path / "nothing")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a folder; give the file"):
            open_text(tmp_path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        with pytest.raises(DataError, match="is empty; give a file"):
            open_text(tmp_path / "empty")

    def test_a_name_that_can_be_none(self) -> None:
        for name in ("a\0b", "a" * 5000):
            with pytest.raises(DataError, match="can't be read"):
                open_text(Path(name))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_a_file_that_may_not_be_read(self, file: Path) -> None:
        file.chmod(0)
        with pytest.raises(DataError, match="can't be read"):
            open_text(file)

    @pytest.mark.parametrize(
        ("num_tokens", "fraction", "words"),
        [
            (20, 0.2, "leaves 20 to test on, but a window of data.num_tokens=20 .* take 21"),
            (30, 0.9, "leaves 10 to train on"),
            (8, 0.001, "leaves 0 to test on"),
        ],
    )
    def test_a_part_shorter_than_a_window(
        self, file: Path, num_tokens: int, fraction: float, words: str
    ) -> None:
        with pytest.raises(DataError, match=words):
            open_text(file, num_tokens=num_tokens, test_fraction=fraction)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_tokens": 0}, "num_tokens=0 is too small"),
        ({"num_tokens": None}, "num_tokens=null is not enough for data=text"),
        ({"stride": 0}, "stride=0 is too small"),
        ({"test_fraction": 1.0}, "test_fraction=1.0 is no share"),
        ({"test_fraction": 0.0}, "use one between 0 and 1"),
        ({"num_outputs": 4}, "num_outputs=4 has no meaning for data=text"),
    ],
)
def test_keys_that_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_text(None, **fields)


def test_other_data_has_no_windows() -> None:
    with pytest.raises(ConfigError, match=r"num_tokens=8 has no meaning for data=dig.*data=text"):
        open_dataset(DataConfig(test_every=5, num_tokens=8))


class TestObjective:
    def test_sums_are_over_tokens(self) -> None:
        objective = choose_objective(ModelConfig(), "next_token", items_per_sample=5)
        outputs = torch.randn(3, 5, 7, dtype=torch.float64)
        targets = torch.randint(7, (3, 5))
        loss, correct = objective.sums(outputs, targets)
        shares = outputs.exp() / outputs.exp().sum(2, keepdim=True)
        expected = [-math.log(shares[i, j, targets[i, j]]) for i in range(3) for j in range(5)]
        assert float(loss) == pytest.approx(sum(expected))
        right = [int(outputs[i, j].argmax()) == targets[i, j] for i in range(3) for j in range(5)]
        assert int(correct) == sum(right)
        assert objective.items_per_sample == 5

    def test_means_are_over_tokens_and_the_loss_is_told_in_bits(self) -> None:
        objective = choose_objective(ModelConfig(), "next_token", items_per_sample=5)
        found = Evaluation.of(torch.tensor([30 * math.log(2), 6.0]).double(), objective, 3)
        assert (found.num_samples, found.accuracy) == (3, pytest.approx(0.4))
        assert found.bits_per_byte == pytest.approx(2)
        classes = choose_objective(ModelConfig(), "classification")
        assert Evaluation.of(torch.ones(2).double(), classes, 3).bits_per_byte is None

    def test_a_loss_of_values_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"model.loss=mse can't tell which token comes next"):
            choose_objective(ModelConfig(loss="mse"), "next_token")
