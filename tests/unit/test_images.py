"""Datasets of images: what shape they tell, and CIFAR's files, small ones made here."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_ml.config.data import DataConfig
from dist_ml.config.model import ModelConfig
from dist_ml.datasets import Dataset, open_dataset
from dist_ml.datasets.joined import JoinedRows
from dist_ml.errors import ConfigError, DataError
from dist_ml.models import Samples, build_model
from tests.unit.test_datasets import SYNTHETIC, open_arrays, open_mnist, write_idx

TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
SIZES = (3, 1, 4, 2, 2)  # records of each training file


def shapes(dataset: Dataset) -> set[tuple[int, ...]]:
    return {split.sample_shape for split in (dataset.train, dataset.test)}


def test_the_digits_and_idx_files_have_one_channel(tmp_path: Path) -> None:
    assert shapes(open_dataset(DataConfig(test_every=5))) == {(1, 8, 8)}
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", np.zeros((2, 3, 4), np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.zeros(2, np.uint8))
    assert shapes(open_mnist(tmp_path)) == {(1, 3, 4)}
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(DataError, match="3 x 4 pixels to train on and of 4 x 3 to test on"):
        open_mnist(tmp_path)


def test_other_samples_are_no_images() -> None:
    split = open_dataset(SYNTHETIC).train
    assert split.sample_shape == (37,)
    samples = Samples(split.sample_shape, split.num_outputs, split.task)
    with pytest.raises(ConfigError, match=r"takes images .* this data is \[37\]; use data=digits"):
        build_model(ModelConfig("cnn"), samples, seed=0)


def save_arrays(folder: Path, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    for split, shape in (("train", train), ("test", test)):
        np.save(folder / f"{split}_x.npy", np.arange(2 * np.prod(shape)).reshape(2, *shape))
        np.save(folder / f"{split}_y.npy", np.arange(2))


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ((6,), (6,)),
        ((3, 2), (1, 3, 2)),
        ((4, 3, 2), (4, 3, 2)),
        ((5, 4, 3, 2), (5, 4, 3, 2)),
    ],
)
def test_arrays_tell_the_shape_that_they_were_saved_in(
    tmp_path: Path, saved: tuple[int, ...], told: tuple[int, ...]
) -> None:
    save_arrays(tmp_path, saved, saved)
    dataset = open_arrays(tmp_path)
    assert shapes(dataset) == {told}
    inputs = dataset.train.batch(np.array([1, 0])).inputs
    num = int(np.prod(saved))
    assert torch.equal(inputs, torch.arange(2.0 * num).reshape(2, num).flip(0))


def test_arrays_of_other_shapes_to_test_on_are_told_but_flat_ones_pass(tmp_path: Path) -> None:
    save_arrays(tmp_path, (4, 3, 2), (2, 3, 4))
    with pytest.raises(DataError, match=r"holds samples of 2 x 3 x 4, .* of 4 x 3 x 2; they must"):
        open_arrays(tmp_path)
    save_arrays(tmp_path, (4, 3, 2), (24,))
    assert open_arrays(tmp_path).train.sample_shape == (4, 3, 2)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Records whose label is their number mod 10; pixel p of record r is (r + p) mod 256."""
    pixels, first = np.arange(3072), 0
    for name, size in [*zip(TRAIN, SIZES, strict=True), ("test_batch.bin", 3)]:
        first = 0 if name.startswith("test") else first
        numbers = np.arange(first, first + size)[:, None]
        records = np.hstack([numbers % 10, (numbers + pixels) % 256]).astype(np.uint8)
        (tmp_path / name).write_bytes(records.tobytes())
        first += size
    return tmp_path


def open_cifar(folder: Path, **fields: Any) -> Dataset:
    return open_dataset(DataConfig("cifar", path=str(folder), **fields))


class TestCifar:
    def test_samples_go_on_from_file_to_file(self, cifar: Path) -> None:
        dataset = open_cifar(cifar)
        assert shapes(dataset) == {(3, 32, 32)}
        assert (dataset.train.num_samples, dataset.test.num_samples) == (12, 3)
        assert (dataset.train.num_features, dataset.train.num_outputs) == (3072, 10)
        ids = np.array([11, 0, 7, 3, 8, 2, 7])
        inputs, labels, *_ = dataset.train.batch(ids)
        assert labels.tolist() == [number % 10 for number in ids]
        expected = (ids[:, None] + np.arange(3072)) % 256
        assert torch.allclose(inputs * 255, torch.from_numpy(expected).float())
        assert dataset.test.batch(np.array([2])).targets.tolist() == [2]
        assert open_cifar(cifar, num_train=5).train.num_samples == 5
        with pytest.raises(ConfigError, match=r"data.num_train=13 but .* holds 12 samples"):
            open_cifar(cifar, num_train=13)

    def test_only_the_rows_asked_for_are_copied(self, cifar: Path) -> None:
        rows = open_cifar(cifar).train.x  # type: ignore[attr-defined]
        assert isinstance(rows, JoinedRows)
        assert all(not part.flags.owndata and not part.flags.writeable for part in rows._parts)
        assert rows.take(np.array([], np.int64)).shape == (0, 3072)

    @pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
    def test_a_missing_file_is_named(self, cifar: Path, name: str) -> None:
        (cifar / name).unlink()
        with pytest.raises(DataError, match=rf"{re.escape(name)} is missing; put the files of"):
            open_cifar(cifar)

    @pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3074])
    def test_a_file_of_the_wrong_size_is_told(self, cifar: Path, size: int) -> None:
        (cifar / "data_batch_2.bin").write_bytes(bytes(size))
        with pytest.raises(DataError, match=rf"batch_2.bin has {size} bytes, .* records of 3073"):
            open_cifar(cifar)

    def test_a_label_above_nine_is_told(self, cifar: Path) -> None:
        file = cifar / "data_batch_3.bin"
        content = bytearray(file.read_bytes())
        content[2 * 3073] = 10
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"batch_3.bin: record 2 has label 10, .* be 0 … 9"):
            open_cifar(cifar)

    def test_a_file_that_cannot_be_read_is_told(
        self, cifar: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(np, "memmap", refuse)
        with pytest.raises(DataError, match=r"can't be read \(.*Permission denied\); make it read"):
            open_cifar(cifar)
        with pytest.raises(DataError, match=r"is not a folder; .* data_batch_1.bin … data_batch_5"):
            open_cifar(Path("nowhere"))
