"""`dist-ml bench bitwise`: its part at tiny size, and what is made of its figures."""

from typing import Any

import pytest

from dist_ml.bench import bitwise
from dist_ml.bench.bitwise import BITWISE, CUT, DENSE
from dist_ml.bench.configured import to_arguments, with_widths
from dist_ml.errors import ConfigError
from tests.unit.bench_worlds import GivenWorlds, bench_config, failed, on_threads, only_finite

CONFIG = bench_config("bitwise", "ranks=[1,2]")


def test_its_part_finds_the_same_bits_on_any_number_of_ranks() -> None:
    train = to_arguments(with_widths(CONFIG.train, (5, 6, 3), 13))
    arguments = {"train": train, "shards": 12, "rounds": 1, "steps": 2}
    found = [on_threads(size, bitwise.measure, arguments) for size in (1, 2, 3)]
    assert found[0]["bits"] == found[1]["bits"] == found[2]["bits"]
    assert [each["planned"] for each in found] == [each["words"][BITWISE] for each in found]
    assert set(found[1]["seconds"]) == {DENSE, CUT, BITWISE}


def result(bits: list[str], words: float) -> Any:
    def found(ranks: int | None, _: Any) -> dict[str, Any]:
        seconds = {DENSE: [1.0, 1.0], BITWISE: [1.5, 1.5]}
        sent = {DENSE: 10.0 * (ranks != 1), BITWISE: words}
        own = ["0x1p0"] if ranks == 1 else bits
        return {"seconds": seconds, "words": sent, "planned": 10, "bits": own}

    made = bitwise.run(CONFIG, GivenWorlds({"bitwise": found}))
    only_finite(made)
    return made


def test_other_bits_and_more_words_are_found() -> None:
    assert failed(result(["0x1p0"], 10.0).checks) == []
    assert failed(result(["0x1.8p0"], 10.0).checks) == ["numbers of ranks with other bits"]
    assert failed(result(["0x1p0"], 11.0).checks) == ["words over those planned, 2 ranks"]
    assert result(["0x1p0"], 10.0).records[1]["over dense"] == 1.5


def test_ranks_that_do_not_divide_the_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="shards=8 must be a multiple of ranks=3"):
        bench_config("bitwise", "ranks=[3]")
