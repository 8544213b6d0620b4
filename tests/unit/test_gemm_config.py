"""The configuration of a product: odd numbers, and what a run tells."""

import math
from typing import Any

import pytest
import torch

from dist_ml.cli import gemm
from dist_ml.comm.communicator import Communicator
from dist_ml.config.gemm import GemmConfig
from dist_ml.errors import ConfigError, NonFiniteError
from dist_ml.gemm import experiment, from_config, plan_text
from dist_ml.gemm.plan import Moved
from dist_ml.kernels import kernels
from tests.message_world import run_message_ranks
from tests.thread_world import run_ranks
from tests.unit.test_gemm_command import DEFAULTS


def config(**values: Any) -> GemmConfig:
    return GemmConfig(**{**DEFAULTS, **values})


@pytest.mark.parametrize(
    "key", ["alpha", "beta", "rank_gflops", "link_gbytes", "link_microseconds"]
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_must_be_finite(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value} must be a finite number"):
        config(**{key: value})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": 1e39}, r"alpha=1e\+39, beta=0.0 and k=8 can exceed the largest fp32 number"),
        ({"alpha": 1e38}, "can exceed"),
        ({"beta": -1e39}, "can exceed"),
        ({"alpha": 1e308, "dtype": "fp64"}, "the largest fp64 number, 1.798e"),
        ({"beta": 3.4e38, "dtype": "bf16"}, "the largest bf16 number"),
        ({"rank_gflops": 0.0}, "rank_gflops=0.0 must be above 0"),
        ({"link_microseconds": -1.0}, "link_microseconds=-1.0 must be at least 0"),
        ({"n": -3}, "n=-3 must be at least 0"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"panel": -1}, "panel=-1 must be at least 1"),
        ({"grid": (1, 2, 3, 4)}, "three sides"),
        ({"memory": "9" * 400}, "is no size"),
        ({"memory": "1.2.3MiB"}, "is no size"),
        ({"memory": ""}, "is no size"),
    ],
    ids=str,
)
def test_what_no_product_can_have_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**values)


@pytest.mark.parametrize("values", [{"alpha": 1e37}, {"alpha": 1e39, "dtype": "fp64"}, {"k": 0}])
def test_large_factors_that_fit_are_taken(values: dict[str, Any]) -> None:
    assert config(**values)


@pytest.mark.parametrize(
    ("values", "started", "words"),
    [
        ({"ranks": 3}, 2, "ranks=3, but 2 were started"),
        ({"grid": (2, 2, 1), "ranks": 5}, None, "grid 2 x 2 x 1 = 4 ranks, but there are 5"),
        ({"m": 10**23}, None, "must be at most"),
        ({"ranks": 10**9}, None, "more than can be planned"),
        ({"memory": "9999999999GiB"}, None, "more bytes than an address has"),
        ({"algorithm": "cosma", "replication": 2, "ranks": 4}, None, "no effect on cosma"),
        ({"algorithm": "strassen"}, None, "algorithm=strassen is not one of auto, cosma"),
        ({"k": 10**8, "panel": 1}, None, "would be gathered in"),
    ],
    ids=str,
)
def test_plans_that_cannot_be_are_refused(
    values: dict[str, Any], started: int | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        from_config.plan_of(config(**values), started)


def test_the_plan_follows_the_configured_machine() -> None:
    """Where messages are dear, auto takes an algorithm with fewer of them."""
    sizes = {"m": 4096, "n": 4096, "k": 4096, "ranks": 64}
    cheap, dear = (
        from_config.plan_of(config(**sizes, link_microseconds=x, link_gbytes=0.1, rank_gflops=1e3))
        for x in (0.1, 1e5)
    )
    assert dear.messages < cheap.messages
    assert cheap.words < dear.words


def test_the_text_of_a_plan_tells_what_is_not_usual() -> None:
    values = {"m": 30, "n": 30, "k": 30, "ranks": 27, "memory": 320, "algorithm": "cosma"}
    plan = from_config.plan_of(config(**values))
    told = dict(plan_text.lines(plan, from_config.cost_model_of(config(**values))))
    assert "one after the other" in told["tiles"]
    assert "COSMA's bound" in told[""]
    idle = from_config.plan_of(config(ranks=5, algorithm="cannon"))
    told = dict(plan_text.lines(idle, from_config.cost_model_of(config())))
    assert told["grid"] == "2 x 2 x 1 (along m, n, k), 1 of 5 ranks idle"
    assert "tiles" not in told
    alone = from_config.plan_of(config())
    assert "bound 0" in dict(plan_text.lines(alone, from_config.cost_model_of(config())))["words"]


@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("algorithm", ["auto", "summa_25d", "cannon"])
def test_a_run_is_checked_and_as_planned(algorithm: str, dtype: str) -> None:
    values = {"m": 33, "n": 20, "k": 41, "beta": 0.5, "transpose_b": True, "repeats": 2}
    setting = config(**values, algorithm=algorithm, dtype=dtype)
    outcomes = run_message_ranks(4, lambda comm, _: experiment.run(setting, comm))
    for outcome in outcomes:
        assert outcome.as_planned
        assert outcome.error_over_bound <= 1
        assert len(outcome.seconds) == 2
        assert outcome.flops == 2 * 33 * 20 * 41
    assert not experiment.Outcome(outcomes[0].plan, [1.0], [Moved(0, 0, 0)] * 4, 0.0).as_planned


def test_a_wrong_product_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(c: torch.Tensor, *_: Any) -> None:
        c.fill_(3.0)

    monkeypatch.setitem(kernels.KERNELS, "torch", wrong)
    with pytest.raises(NonFiniteError, match="the product is wrong"):
        run_ranks(1, lambda comm: experiment.run(config(), comm))


def test_a_corner_of_a_long_product_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_CHECKED_WORDS", 64)
    sizes: list[int] = []
    make = experiment._elements

    def recorded(*arguments: Any) -> torch.Tensor:
        found = make(*arguments)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(experiment, "_elements", recorded)
    run_ranks(1, lambda comm: experiment.run(config(m=40, n=40, k=32), comm))
    assert max(sizes) == 64


def test_more_than_the_memory_of_a_node_is_refused_on_all_ranks() -> None:
    setting = config(m=10**7, n=10**7, k=4)

    def body(comm: Communicator) -> str:
        with pytest.raises(ConfigError, match="the ranks of a node need") as caught:
            experiment.run(setting, comm)
        return str(caught.value)

    assert len(set(run_ranks(3, body))) == 1


def test_the_command_tells_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert gemm.main(["m=20", "n=30", "k=40", "kernel=torch", "repeats=2"]) == 0
    told = capsys.readouterr().out
    for words in ("GFLOP/s", "best of 2", "ledger", "as planned on every rank", "by formula"):
        assert words in told


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["kernel=mkl"], "kernel=mkl is not one of"),
        (["alpha=1e39"], "can exceed the largest"),
        (["m=100000000", "n=100000000", "k=3"], "the ranks of a node need"),
    ],
)
def test_the_command_refuses_before_it_computes(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gemm.main(argv) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert words in told


def test_the_help_names_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert gemm.main(["--help"]) == 0
    assert "--plan" in capsys.readouterr().out
