"""`dist-ml gemm`: its configuration, its plans in words, and a run on one rank."""

import pytest

from dist_ml.cli import gemm
from dist_ml.config.gemm import GemmConfig
from dist_ml.errors import ConfigError

DEFAULTS = {
    "m": 8, "n": 8, "k": 8, "ranks": None, "algorithm": "auto", "dtype": "fp32",
    "memory": None, "grid": None, "panel": None,
    "replication": None, "transpose_a": False, "transpose_b": False, "alpha": 1.0, "beta": 0.0,
    "kernel": "torch", "seed": 0,
    "repeats": 1, "rank_gflops": 100.0, "link_gbytes": 10.0, "link_microseconds": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(None, None), (1000, 1000), ("512MiB", 512 << 20), ("1.5 GB", 1_500_000_000), ("64k", 64_000)],
)
def test_memory_is_bytes_or_a_size(memory: int | str | None, expected: int | None) -> None:
    assert GemmConfig(**{**DEFAULTS, "memory": memory}).memory_bytes == expected


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("m", -1, "m=-1 must be at least 0"),
        ("ranks", 0, "ranks=0 must be at least 1"),
        ("grid", (2, 2), "three sides"),
        ("memory", "much", "memory=much is no size"),
        ("memory", -5, "memory=-5"),
        ("link_gbytes", 0.0, "above 0"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GemmConfig(**{**DEFAULTS, key: value})


def test_a_plan_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["m=4096", "n=4096", "k=4096", "ranks=64", "memory=8MiB"]
    assert gemm.main(["--plan", *sizes, "algorithm=cosma"]) == 0
    told = capsys.readouterr().out
    for words in (
        "4 x 4 x 4",
        "1.000 of the bound",
        "COSMA's bound",
        "messages",
        "predicted",
        "working",
    ):
        assert words in told


def test_a_grid_must_multiply_to_the_ranks() -> None:
    with pytest.raises(ConfigError, match=r"grid 2 x 2 x 2 = 8 ranks, but there are 6"):
        gemm.main(["--plan", "ranks=6", "grid=[2,2,2]"])


def test_a_run_on_one_rank_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["m=33", "n=20", "k=17", "kernel=numpy", "beta=0.5", "transpose_a=true", "dtype=fp64"]
    assert gemm.main([*sizes, "repeats=1"]) == 0
    told = capsys.readouterr().out
    assert "as planned on every rank" in told
    assert "against float64" in told
