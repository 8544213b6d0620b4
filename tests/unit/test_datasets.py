"""Datasets: what each sample is, that it never depends on its company, and that bad files are
named.
"""

import gzip
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.config.convert import from_mapping
from dist_ml.config.data import DataConfig
from dist_ml.config.names import OWN
from dist_ml.counter_random import bits, lanes, stream
from dist_ml.datasets import DATASETS, Dataset, Entry, Split, open_dataset, synthetic
from dist_ml.datasets.synthetic import Teacher, make_teacher
from dist_ml.errors import ConfigError, DataError

SYNTHETIC = DataConfig(
    "synthetic",
    num_train=500,
    num_test=70,
    num_features=37,
    num_outputs=4,
    task="classification",
    teacher_width=9,
    noise=0.0,
    seed=1,
)
REGRESSION = replace(SYNTHETIC, task="regression", noise=0.1, num_outputs=3)


def everything(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.batch(np.arange(split.num_samples))[:2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of `.npy` pairs: 20 + 6 samples of 2 x 3 features in 3 classes."""
    generator = np.random.default_rng(0)
    for split, num in (("train", 20), ("test", 6)):
        np.save(tmp_path / f"{split}_x.npy", generator.normal(size=(num, 2, 3)))
        np.save(tmp_path / f"{split}_y.npy", np.arange(num, dtype=np.int32) % 3)
    return tmp_path


def open_arrays(folder: Path, **fields: object) -> Dataset:
    return open_dataset(from_mapping(DataConfig, {"name": "arrays", "path": str(folder), **fields}))


def write_idx(file: Path, values: np.ndarray, code: int = 8) -> None:
    content = (
        struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape) + values.tobytes()
    )
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


@pytest.fixture(params=["", ".gz"])
def mnist_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for prefix, num in (("train", 12), ("t10k", 5)):
        images = np.arange(num * 12, dtype=np.uint8).reshape(num, 3, 4)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{request.param}", images)
        write_idx(
            tmp_path / f"{prefix}-labels-idx1-ubyte{request.param}",
            np.arange(num, dtype=np.uint8) % 4,
        )
    return tmp_path


def open_mnist(folder: Path) -> Dataset:
    return open_dataset(DataConfig("mnist", path=str(folder)))


class TestAllDatasets:
    @pytest.fixture(params=["digits", "synthetic", "regression"])
    def config(self, request: pytest.FixtureRequest) -> DataConfig:
        return {
            "digits": DataConfig(test_every=5),
            "synthetic": SYNTHETIC,
            "regression": REGRESSION,
        }[request.param]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shapes_and_dtypes(self, config: DataConfig, dtype: torch.dtype) -> None:
        dataset = open_dataset(config, dtype)
        for split in (dataset.train, dataset.test):
            for num in (0, 1, 7):
                x, y, *_ = split.batch(np.arange(num))
                assert (x.shape, x.dtype) == ((num, split.num_features), dtype)
                if split.task == "classification":
                    assert (y.shape, y.dtype) == ((num,), torch.int64)
                else:
                    assert (y.shape, y.dtype) == ((num, split.num_outputs), dtype)

    def test_a_sample_is_the_same_in_any_company(self, config: DataConfig) -> None:
        split = open_dataset(config).train
        x, y = everything(split)
        order = np.random.default_rng(0).permutation(split.num_samples)
        for ids in (order, order[:3], order[5:6]):
            some_x, some_y, *_ = split.batch(ids)
            assert torch.equal(some_x, x[ids])
            assert torch.equal(some_y, y[ids])

    def test_the_caller_owns_what_it_gets(self, config: DataConfig) -> None:
        split = open_dataset(config).train
        first = split.batch(np.arange(3))[0]
        kept = first.clone()
        first.zero_()
        assert torch.equal(split.batch(np.arange(3))[0], kept)


class TestDigits:
    def test_every_fifth_of_each_class_is_for_testing_and_no_sample_is_lost(self) -> None:
        dataset = open_dataset(DataConfig(test_every=5))
        assert (
            dataset.train.num_samples,
            dataset.test.num_samples,
            dataset.train.num_features,
        ) == (1442, 355, 64)
        sizes = [
            torch.bincount(everything(split)[1], minlength=10)
            for split in (dataset.train, dataset.test)
        ]
        assert torch.equal(sizes[1], (sizes[0] + sizes[1]) // 5)
        pixels = torch.cat([everything(split)[0] for split in (dataset.train, dataset.test)])
        assert (pixels.min(), pixels.max()) == (0, 1)
        assert (pixels * 16).sum() == 561_718

    def test_fewer_samples_on_demand_but_not_more(self) -> None:
        assert open_dataset(DataConfig(test_every=5, num_train=100)).train.num_samples == 100
        with pytest.raises(ConfigError, match=r"data.num_test=356 but .* holds 355"):
            open_dataset(DataConfig(test_every=5, num_test=356))

    def test_a_share_that_holds_nothing_out_is_told(self) -> None:
        with pytest.raises(ConfigError, match=r"test_every=200 leaves no sample for data.num_test"):
            open_dataset(DataConfig(test_every=200))


class TestMnist:
    def test_pixels_and_labels(self, mnist_folder: Path) -> None:
        dataset = open_mnist(mnist_folder)
        assert (dataset.train.num_samples, dataset.test.num_samples) == (12, 5)
        assert (dataset.train.num_features, dataset.train.num_outputs) == (12, 4)
        x, y, *_ = dataset.train.batch(np.array([3, 0]))
        assert torch.allclose(x[0] * 255, torch.arange(36.0, 48.0))
        assert y.tolist() == [3, 0]

    def test_a_missing_file_is_named(self, mnist_folder: Path) -> None:
        next(mnist_folder.glob("t10k-labels*")).unlink()
        with pytest.raises(
            DataError,
            match=r"holds no t10k-labels-idx1-ubyte and no t10k-labels-idx1-ubyte.gz; put it there",
        ):
            open_mnist(mnist_folder)

    @pytest.mark.parametrize("length", [0, 3, 10, 40])
    def test_a_file_cut_short_is_named(self, mnist_folder: Path, length: int) -> None:
        file = next(mnist_folder.glob("train-images*"))
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(
            DataError,
            match=r"train-images-idx3-ubyte(.gz)? (is cut short|can't be unzipped).*get .* again",
        ):
            open_mnist(mnist_folder)

    @pytest.mark.parametrize(
        ("name", "values", "code", "message"),
        [
            (
                "train-images-idx3-ubyte",
                np.zeros(36, np.uint8),
                8,
                "holds uint8 values in 1 dims, but must hold uint8 in 3",
            ),
            (
                "train-labels-idx1-ubyte",
                np.zeros(12, np.float32),
                13,
                "holds float32 values in 1 dims, but must hold uint8",
            ),
            ("train-labels-idx1-ubyte", np.zeros(12, np.uint8), 7, "is no IDX file"),
            (
                "train-labels-idx1-ubyte",
                np.zeros(11, np.uint8),
                8,
                "there must be one label an image",
            ),
            (
                "t10k-images-idx3-ubyte",
                np.zeros((5, 2, 2), np.uint8),
                8,
                "3 x 4 pixels to train on and of 2 x 2 to test on",
            ),
        ],
    )
    def test_a_wrong_header_is_told(
        self, tmp_path: Path, name: str, values: np.ndarray, code: int, message: str
    ) -> None:
        for prefix in ("train", "t10k"):
            write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", np.zeros((12, 3, 4), np.uint8))
            write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.zeros(12, np.uint8))
        write_idx(
            tmp_path / "t10k-labels-idx1-ubyte",
            np.zeros(5 if name.startswith("t10k") else 12, np.uint8),
        )
        write_idx(tmp_path / name, values, code)
        with pytest.raises(DataError, match=message):
            open_mnist(tmp_path)

    def test_sizes_beyond_the_file_are_told_without_making_room_for_them(
        self, mnist_folder: Path
    ) -> None:
        file = next(mnist_folder.glob("train-images*"))
        content = struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3) + bytes(144)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
        with pytest.raises(DataError, match=r"is cut short: 4294967295 x .* but it has 160"):
            open_mnist(mnist_folder)

    def test_a_file_that_cannot_be_read_is_told(
        self, mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(np, "memmap", refuse)
        monkeypatch.setattr(gzip, "decompress", refuse)
        with pytest.raises(DataError, match=r"can't be read \(.*Permission denied\)"):
            open_mnist(mnist_folder)

    def test_labels_of_one_class_still_make_two_outputs(self, mnist_folder: Path) -> None:
        write_idx(next(mnist_folder.glob("train-labels*")), np.zeros(12, np.uint8))
        assert open_mnist(mnist_folder).train.num_outputs == 2

    def test_an_uncompressed_file_is_mapped(self, mnist_folder: Path) -> None:
        pixels = open_mnist(mnist_folder).train.x  # type: ignore[attr-defined]
        assert not pixels.flags.writeable

    def test_trailing_bytes_and_unknown_labels_are_told(self, mnist_folder: Path) -> None:
        labels = next(mnist_folder.glob("t10k-labels*"))
        write_idx(labels, np.array([0, 1, 2, 3, 9], np.uint8))
        with pytest.raises(
            DataError, match=r"t10k-labels-idx1-ubyte: row 4 has label 9, but labels must be 0 … 3"
        ):
            everything(open_mnist(mnist_folder).test)
        content = struct.pack(">HBBI", 0, 8, 1, 5) + bytes(6)
        labels.write_bytes(gzip.compress(content) if labels.suffix == ".gz" else content)
        with pytest.raises(DataError, match=r"is too long: 5 values make 13 bytes, but it has 14"):
            open_mnist(mnist_folder)

    def test_a_folder_that_is_not_there(self) -> None:
        with pytest.raises(DataError, match=r"data.path=nowhere is not a folder"):
            open_mnist(Path("nowhere"))


class TestArrays:
    def test_rows_come_flat_and_classes_are_counted(self, folder: Path) -> None:
        dataset = open_arrays(folder)
        x, y, *_ = dataset.train.batch(np.array([4, 19]))
        assert np.allclose(x.numpy(), np.load(folder / "train_x.npy").reshape(20, 6)[[4, 19]])
        assert y.tolist() == [1, 1]
        assert (dataset.train.num_outputs, dataset.test.num_samples, dataset.train.task) == (
            3,
            6,
            "classification",
        )

    @given(st.integers(2, 25), st.integers(2, 9))
    def test_held_out_rows_and_kept_rows_are_all_rows_once(self, num_rows: int, every: int) -> None:
        from dist_ml.datasets.arrays import held_out_rows, kept_rows

        num_test = num_rows // every
        kept, held_out = (
            kept_rows(np.arange(num_rows - num_test), every),
            held_out_rows(np.arange(num_test), every),
        )
        assert sorted([*kept, *held_out]) == list(range(num_rows))

    def test_hold_out_instead_of_test_files(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"data.test_every=5 but .* holds test_x.npy"):
            open_arrays(folder, test_every=5)
        (folder / "test_x.npy").unlink()
        dataset = open_arrays(folder, test_every=5)
        assert (dataset.train.num_samples, dataset.test.num_samples) == (16, 4)
        with pytest.raises(ConfigError, match=r"holds nothing out of 20 rows"):
            open_arrays(folder, test_every=21)

    def test_regression_on_one_value_and_on_several(self, folder: Path) -> None:
        for shape in ((), (1,), (4,)):
            for split, num in (("train", 20), ("test", 6)):
                np.save(folder / f"{split}_y.npy", np.ones((num, *shape)))
            dataset = open_arrays(folder)
            assert dataset.train.task == "regression"
            assert (
                dataset.train.batch(np.arange(5))[1].shape
                == (5, dataset.train.num_outputs)
                == (5, shape[0] if shape else 1)
            )

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("file", ["train_x", "train_y"])
    def test_what_is_not_finite_is_found_only_in_touched_rows(
        self, folder: Path, value: float, file: str
    ) -> None:
        np.save(folder / "train_y.npy", np.zeros((20, 6)))
        np.save(folder / "test_y.npy", np.zeros((6, 6)))
        values = np.load(folder / f"{file}.npy")
        values.reshape(20, 6)[13, 4] = value
        np.save(folder / f"{file}.npy", values)
        split = open_arrays(folder).train
        split.batch(np.arange(13))
        with pytest.raises(
            DataError,
            match=rf"{file}.npy: row 13, column 4 holds {value} .*every value must be finite",
        ):
            split.batch(np.array([2, 13, 5]))

    def test_large_but_finite_values_pass(self, folder: Path) -> None:
        np.save(folder / "train_x.npy", np.full((20, 6), 3e38))
        assert torch.isfinite(everything(open_arrays(folder).train)[0]).all()

    def test_a_value_too_large_for_the_training_dtype_is_told(self, folder: Path) -> None:
        np.save(folder / "train_x.npy", np.full((20, 6), 1e300))
        with pytest.raises(DataError, match=r"row 0, column 0 holds inf \(as float32\)"):
            everything(open_arrays(folder).train)

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_label_out_of_range_is_named(self, folder: Path, label: int) -> None:
        labels = np.load(folder / "train_y.npy")
        labels[7] = label
        np.save(folder / "train_y.npy", labels)
        with pytest.raises(
            DataError, match=rf"train_y.npy: row 7 has label {label}, but labels must be 0 … 2"
        ):
            everything(open_arrays(folder, num_outputs=3).train)

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("train_x", np.zeros(20), r"shape \[20\], but the train samples need 2 or more dims"),
            ("train_x", np.zeros((19, 6)), r"train_x.npy has 19 rows and .*train_y.npy has 20"),
            ("train_x", np.zeros((20, 0)), r"there must be a sample and a feature"),
            (
                "train_x",
                np.zeros((20, 6), complex),
                r"holds complex128, but the train samples must be whole or floating",
            ),
            ("train_x", np.zeros((20, 6), order="F"), r"is in Fortran order"),
            ("train_x", np.array([None] * 20), r"is no readable .npy file"),
            ("train_y", np.zeros((20, 2), int), r"classes must be one whole number a sample"),
            ("train_y", np.zeros((20, 2, 2)), r"need 1 or 2 dims"),
            ("test_x", np.zeros((6, 5)), r"test_x.npy has 5 features, .*train_x.npy 6"),
            ("test_y", np.zeros(6), r"both must be classes, or both values"),
        ],
    )
    def test_a_wrong_array_is_told(
        self, folder: Path, name: str, values: np.ndarray, message: str
    ) -> None:
        np.save(folder / f"{name}.npy", values, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            open_arrays(folder)

    @pytest.mark.parametrize(
        ("label", "dtype"), [(10**15, np.int64), (2**63 + 5, np.uint64), (2**63 - 1, np.int64)]
    )
    def test_a_label_that_makes_absurdly_many_classes_is_named(
        self, folder: Path, label: int, dtype: type
    ) -> None:
        labels = np.load(folder / "train_y.npy").astype(dtype)
        labels[7] = label
        np.save(folder / "train_y.npy", labels)
        with pytest.raises(
            DataError,
            match=rf"row 7 has label {label}, which makes {label + 1} classes of 20 .*mend the",
        ):
            open_arrays(folder)
        with pytest.raises(DataError, match=rf"row 7 has label {label}, but labels must be 0 … 2"):
            everything(open_arrays(folder, num_outputs=3).train)

    def test_as_many_classes_as_were_asked_for(self, folder: Path) -> None:
        np.save(folder / "train_y.npy", np.full(20, 70_000))
        with pytest.raises(DataError, match=r"set data.num_outputs=70001 if they are so many"):
            open_arrays(folder)
        assert open_arrays(folder, num_outputs=70_001).train.num_outputs == 70_001
        with pytest.raises(ConfigError, match=r"num_outputs=1 is too few classes.*whole numbers"):
            open_arrays(folder, num_outputs=1)
        np.save(folder / "train_y.npy", np.ones((20, 4)))
        np.save(folder / "test_y.npy", np.ones((6, 4)))
        with pytest.raises(ConfigError, match=r"num_outputs=3 but .* holds 4 values a sample"):
            open_arrays(folder, num_outputs=3)

    @pytest.mark.parametrize("dtype", [">f4", "<f2", ">i2", "u1", "u8", "longdouble"])
    @pytest.mark.parametrize("label_dtype", [">i8", "u1", "i1", "u8"])
    def test_any_real_dtype_and_byte_order_comes_as_its_values(
        self, folder: Path, dtype: str, label_dtype: str
    ) -> None:
        x = np.arange(120).reshape(20, 6)
        np.save(folder / "train_x.npy", x.astype(dtype))
        np.save(folder / "train_y.npy", (np.arange(20) % 3).astype(label_dtype).reshape(20, 1))
        for num_outputs in (None, 300):
            split = open_arrays(folder, num_outputs=num_outputs).train
            batch = split.batch(np.array([19, 0, 7]))
            assert batch.inputs.dtype == torch.float32
            assert batch.inputs.tolist() == x[[19, 0, 7]].tolist()
            assert (batch.targets.dtype, batch.targets.tolist()) == (torch.int64, [1, 0, 1])
            assert (batch.sample_ids.tolist(), batch.num_items) == ([19, 0, 7], 3)

    def test_the_files_are_mapped_and_stay_as_they_are(self, folder: Path) -> None:
        split = open_arrays(folder).train
        base = split.x  # type: ignore[attr-defined]
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
        before = (folder / "train_x.npy").read_bytes()
        split.batch(np.arange(20)).inputs.zero_()
        assert (folder / "train_x.npy").read_bytes() == before

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"PK\x03\x04 a broken archive",
            b"\x80\x04]\x94.",
            b"\x93NUMPY\x01\x00",
            b"\x93NUMPY\x09\x00v\x00",
            b"\x93NUMPY\x01\x00\x04\x00((((",
            b"\x93NUMPY\x01\x00\x02\x00[]",
            *(
                b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
                for header in (
                    b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 6)}",
                    b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999, 6)}",
                    b"{'descr': '<f8', 'fortran_order': False, 'shape': (2**70, 6)}",
                    b"{'descr': '<f8', 'fortran_order': False, 'shape': (1" + b"0" * 30 + b",)}",
                    b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (3, 6)}",
                    b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 6)}",
                    b"{'descr': '<f8', 'shape': (3, 6)}",
                )
            ),
        ],
        ids=lambda content: f"{len(content)} bytes",
    )
    def test_a_damaged_file_is_told_and_no_pickle_is_read(
        self, folder: Path, content: bytes
    ) -> None:
        (folder / "train_x.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"train_x.npy is no readable .npy file .*save it aga"):
            open_arrays(folder)

    def test_an_archive_and_structured_values_are_told(self, folder: Path) -> None:
        with (folder / "train_x.npy").open("wb") as file:
            np.savez(file, a=np.zeros((20, 6)))
        with pytest.raises(DataError, match=r"is an archive of several arrays"):
            open_arrays(folder)
        for values in (
            np.zeros((20, 6), bool),
            np.zeros((20, 6), "M8[s]"),
            np.zeros((20, 6), [("a", "f4")]),
            np.full((20, 6), "text"),
        ):
            np.save(folder / "train_x.npy", values)
            with pytest.raises(DataError, match=r"samples must be whole or floating numbers"):
                open_arrays(folder)

    @pytest.mark.parametrize("path", ["nowhere", "x" * 5000, "a\0b"], ids=["none", "long", "nul"])
    @pytest.mark.parametrize("name", ["arrays", "mnist"])
    def test_a_path_that_is_no_folder(self, name: str, path: str) -> None:
        with pytest.raises(DataError, match=r"is not a folder; give the one that holds train"):
            open_dataset(DataConfig(name, path=path))

    def test_missing_and_cut_files_are_named(self, folder: Path) -> None:
        file = folder / "train_x.npy"
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(DataError, match=r"train_x.npy is no readable .npy file"):
            open_arrays(folder)
        file.unlink()
        with pytest.raises(
            DataError, match=r"train_x.npy with the train samples is missing; save it there"
        ):
            open_arrays(folder)


class TestSynthetic:
    @pytest.mark.parametrize(
        "config", [SYNTHETIC, replace(SYNTHETIC, num_features=4400), REGRESSION]
    )
    def test_labels_are_the_naive_teachers(self, config: DataConfig) -> None:
        """The reference adds Python's unbounded whole numbers, one product after the other."""
        assert config.num_features is not None
        config = replace(config, noise=0.0)
        split = open_dataset(config, torch.float64).test
        x, y, *_ = split.batch(np.array([5, 0]))
        keys = bits(stream("synthetic features", 1), np.array([505, 500]))
        features = [
            [2 * int(v) - 255 for v in row] for row in lanes(keys, config.num_features, np.uint8)
        ]
        assert np.allclose(x.numpy() * np.sqrt((256**2 - 1) / 3), features, rtol=1e-15)
        teacher = make_teacher(1, config.num_features, 9, split.num_outputs)
        for sample, label in zip(features, y, strict=True):
            hidden = [
                max(0, sum(int(w) * v for w, v in zip(column, sample, strict=True)))
                for column in teacher.first.T
            ]
            scores = [
                sum(int(w) * h for w, h in zip(column, hidden, strict=True))
                for column in teacher.second.T
            ]
            scores = [score - int(mean) for score, mean in zip(scores, teacher.mean, strict=True)]
            expected = (
                int(np.argmax(scores))
                if split.task == "classification"
                else [s * teacher.scale for s in scores]
            )
            assert label.tolist() == expected

    def test_the_teacher_is_exact_even_for_the_largest_sums(self) -> None:
        """Beyond 2^24 float32 holds only every second whole number; in one piece, this sum would
        lose its last bit.
        """
        num = 9001
        first, second = np.full((num, 1), 15, np.float32), np.ones((1, 1))
        teacher = Teacher(first, second, mean=np.zeros(1), scale=1.0)
        assert teacher.scores(np.full((3, num), 255, np.float32)).tolist() == [[255 * 15 * num]] * 3

    def test_features_have_mean_zero_and_variance_one_and_classes_are_balanced(self) -> None:
        split = open_dataset(replace(SYNTHETIC, num_train=20_000, teacher_width=32)).train
        x, y = everything(split)
        assert abs(x.mean()) < 0.01
        assert abs(x.var() - 1) < 0.01
        shares = torch.bincount(y, minlength=4) / len(y)
        assert shares.min() > 0.15
        assert shares.max() < 0.4

    def test_regression_outputs_have_variance_about_one(self) -> None:
        y = everything(
            open_dataset(replace(REGRESSION, num_train=20_000, teacher_width=32, noise=0.0)).train
        )[1]
        assert 0.7 < y.var() < 1.4
        assert y.mean(0).abs().max() < 0.3

    def test_noise_changes_the_share_of_labels_that_was_asked_for(self) -> None:
        clean, noisy = (
            everything(open_dataset(replace(SYNTHETIC, num_train=20_000, noise=noise)).train)[1]
            for noise in (0.0, 0.4)
        )
        assert abs((clean != noisy).double().mean() - 0.4 * 3 / 4) < 0.02

    def test_noise_on_values_has_the_standard_deviation_that_was_asked_for(self) -> None:
        clean, noisy = (
            everything(open_dataset(replace(REGRESSION, num_train=20_000, noise=noise)).train)[1]
            for noise in (0.0, 0.5)
        )
        assert abs((noisy - clean).std() - 0.5) < 0.01

    def test_test_samples_follow_the_training_samples(self) -> None:
        longer = open_dataset(replace(SYNTHETIC, num_train=570))
        x, y, *_ = longer.train.batch(np.arange(500, 570))
        test_x, test_y = everything(open_dataset(SYNTHETIC).test)
        assert torch.equal(x, test_x)
        assert torch.equal(y, test_y)

    def test_seeds_give_other_samples(self) -> None:
        one, other = (
            open_dataset(replace(SYNTHETIC, seed=seed)).train.batch(np.arange(2))[0]
            for seed in (1, 2)
        )
        assert not torch.equal(one, other)


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"name": "mnist"},
                "data.path=null is not enough for data=mnist; set data.path=FOLDER",
            ),
            (
                {"name": "digits", "test_every": 5, "noise": 0.1},
                "data.noise=0.1 has no meaning for data=digits",
            ),
            (
                {"name": "digits", "test_every": 1},
                "data.test_every=1 is too small; it must be at least 2",
            ),
            ({"name": "digits", "test_every": 5, "num_train": 0}, "data.num_train=0 is too small"),
            ({"name": "synthetic"}, "data.num_train=null is not enough for data=synthetic"),
            (
                {"name": "digit"},
                "data.name=digit is not one of digits, mnist, cifar, arrays, text, synthetic "
                "(did you mean digits?)",
            ),
        ],
    )
    def test_what_cannot_be_is_told(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            open_dataset(from_mapping(DataConfig, fields, "data"))
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        "change",
        [
            {"num_outputs": 1},
            {"noise": 1.5},
            {"noise": -0.1},
            {"noise": float("inf"), "task": "regression"},
            {"num_features": 2**21},
            {"teacher_width": 2**17},
            {"num_train": 2**41},
            {"num_test": 10**30},
        ],
        ids=str,
    )
    def test_synthetic_limits(self, change: dict[str, object]) -> None:
        (field, value), *_ = change.items()
        with pytest.raises(ConfigError, match=f"{field}={re.escape(str(value))} is "):
            replace(SYNTHETIC, **change)  # type: ignore[arg-type]

    def test_more_samples_than_can_be_passed_over_are_told_with_the_time_they_take(self) -> None:
        with pytest.raises(ConfigError, match=r"num_train=10{18} is too large.* 11574074 days at"):
            replace(SYNTHETIC, num_train=10**18)

    @pytest.mark.parametrize(
        "change",
        [{"num_outputs": 10**12}, {"num_features": 2**20, "teacher_width": 2**16}],
        ids=str,
    )
    def test_a_teacher_that_cannot_be_held_is_told(
        self, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(synthetic, "physical_bytes", lambda: 8 * 10**9)
        with pytest.raises(
            ConfigError, match=r"make a teacher that takes \d+ [GT]B, but this machine has 8 GB"
        ):
            open_dataset(replace(SYNTHETIC, **change))  # type: ignore[arg-type]

    def test_a_new_dataset_is_its_module_and_one_entry(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def ones(config: DataConfig, dtype: torch.dtype) -> Dataset:
            digits = open_dataset(DataConfig(test_every=5), dtype)
            return Dataset(f"ones {config.path}", digits.train, digits.test)

        monkeypatch.setitem(DATASETS, "ones", Entry(ones, needs=("path",), takes=("noise",)))
        config = from_mapping(DataConfig, {"name": "ones", "path": "here"}, "data")
        assert open_dataset(config).name == "ones here"
        with pytest.raises(ConfigError, match=r"^data.path=null is not enough for data=ones"):
            open_dataset(DataConfig("ones"))
        with pytest.raises(ConfigError, match=r"^data.seed=3 .*or use data=synthetic$"):
            open_dataset(DataConfig("ones", path="here", seed=3))
        with pytest.raises(ConfigError, match=r"one of digits, mnist, .*synthetic, ones"):
            open_dataset(DataConfig("one of mine"))

    def test_the_packaged_value_files_fill_the_configuration(self) -> None:
        yaml = pytest.importorskip("yaml")
        files = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))
        assert {file.stem for file in files} >= set(DATASETS)
        for file in files:
            values = yaml.safe_load(file.read_text())
            if file.stem == OWN:  # a program hands the samples in
                continue
            if "path" in values:
                values["path"] = "here"
            config = from_mapping(DataConfig, values, "data")
            entry = DATASETS[config.name]
            assert (entry.unused(config), entry.missing(config)) == ([], [])
            assert all(entry.uses(key) for key in values)
