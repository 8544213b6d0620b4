"""Plain mappings to frozen dataclasses: exact where it converts, and worded for the user where it
doesn't.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ml.config.convert import from_mapping, to_mapping
from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float  # a rate
    mode: Literal["fast", "exact"] = "fast"  # a mode

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate={self.rate} must be at least 0")


@dataclass(frozen=True)
class Outer:
    count: int  # how many
    inner: Inner  # a group
    name: str = "run"  # a name
    on: bool = False  # a switch
    sizes: tuple[int, ...] = ()  # any number of sizes
    pair: tuple[float, float] = (0.0, 1.0)  # exactly two
    limit: float | None = None  # null: none
    ranks: int | Literal["auto"] = "auto"  # a number or a word
    axes: dict[str, int] | None = None  # sizes by name


numbers = st.floats(allow_nan=False, min_value=0)
texts = st.text("aZ0 _-.,:=#'\"{}[]\\\n\0é\U0001f600")  # without a table of all of Unicode
outers = st.builds(
    Outer,
    count=st.integers(),
    inner=st.builds(Inner, rate=numbers, mode=st.sampled_from(["fast", "exact"])),
    name=texts,
    on=st.booleans(),
    sizes=st.lists(st.integers()).map(tuple),
    pair=st.tuples(numbers, numbers),
    limit=st.none() | numbers,
    ranks=st.integers() | st.just("auto"),
    axes=st.none() | st.dictionaries(texts, st.integers()),
)


@given(outers)
def test_mapping_and_back_gives_an_equal_config(config: Outer) -> None:
    assert from_mapping(Outer, to_mapping(config)) == config


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts, st.lists, max_leaves=5
    ),
    st.data(),
)
def test_whatever_comes_converts_to_its_type_or_raises_config_error(
    value: Any, data: st.DataObject
) -> None:
    field = data.draw(
        st.sampled_from(["count", "inner", "name", "on", "sizes", "pair", "limit", "ranks", "axes"])
    )
    told = ""
    try:
        config = from_mapping(Outer, {"count": 1, "inner": {"rate": 1}, field: value})
    except ConfigError as error:
        told = str(error)
    assert told.startswith(field) if told else from_mapping(Outer, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("value", "number"),
    [("1e-4", 1e-4), (3, 3.0), ("-.5", -0.5), (math.inf, math.inf), ("2.", 2.0)],
)
def test_numbers_widen_and_spelled_numbers_are_taken(value: Any, number: float) -> None:
    limit = from_mapping(Outer, {"count": 1, "inner": {"rate": 1}, "limit": value}).limit
    assert limit == number
    assert type(limit) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 2}, "unknown key train.cuont=2 (did you mean count?); known here: axes, count,"),
        ({"inner": {"rate": 1, "speed": None}}, "unknown key train.inner.speed=null"),
        (
            {"inner": {}},
            "train.inner.rate is missing and has no default; set train.inner.rate=<a number>",
        ),
        (
            {"inner": 3},
            "train.inner must be a group of keys, but is 3; write train.inner.<name>=<value>",
        ),
        ({"inner": {"rate": -1}}, "train.inner.rate=-1.0 must be at least 0"),
        (
            {"inner": {"rate": 1, "mode": "exakt"}},
            "train.inner.mode=exakt is not one of fast, exact (did you mean exact?)",
        ),
        (
            {"count": 1.5},
            "train.count=1.5 has the wrong type: it must be a whole number, not a number",
        ),
        (
            {"count": True},
            "train.count=true has the wrong type: it must be a whole number, not true or false",
        ),
        (
            {"count": None},
            "train.count=null has the wrong type: it must be a whole number, not null",
        ),
        ({"on": 1}, "train.on=1 has the wrong type: it must be true or false, not a whole number"),
        (
            {"sizes": 4},
            "train.sizes=4 has the wrong type: it must be a list, each item a whole number, not a "
            "whole number",
        ),
        (
            {"sizes": [4, "x"]},
            "train.sizes[1]=x has the wrong type: it must be a whole number, not text",
        ),
        ({"pair": [1, 2, 3]}, "train.pair=[1, 2, 3] has 3 items; it must be a list of 2"),
        ({"limit": "nan"}, "train.limit=nan has the wrong type: it must be a number, not text"),
        ({"limit": math.nan}, "train.limit=.nan is not a number"),
        ({"limit": 10**400}, "train.limit is too large for a float64"),
        ({"limit": "9" * 400}, "train.limit is too large for a float64"),
        (
            {"ranks": "all"},
            "train.ranks=all has the wrong type: it must be a whole number or one of auto, not "
            "text",
        ),
        (
            {"axes": {"data": "x"}},
            "train.axes.data=x has the wrong type: it must be a whole number, not text",
        ),
        (
            {"axes": [1]},
            "train.axes=[1] has the wrong type: it must be a group of keys, not a list",
        ),
    ],
)
def test_a_bad_value_is_named_with_the_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, {"count": 1, "inner": {"rate": 1}} | change, "train")
    assert message in str(caught.value)


def test_a_choice_must_have_its_own_type() -> None:
    @dataclass(frozen=True)
    class Choice:
        depth: Literal[1, 2]  # one of two numbers

    assert from_mapping(Choice, {"depth": 1}).depth == 1
    for wrong in (True, 1.0, "1"):
        with pytest.raises(ConfigError, match="is not one of 1, 2"):
            from_mapping(Choice, {"depth": wrong})


def test_without_a_prefix_the_message_starts_at_the_key() -> None:
    with pytest.raises(
        ConfigError, match=r"^config must be a group of keys, but is 3; write <name>=<value>$"
    ):
        from_mapping(Outer, 3)  # type: ignore[arg-type]
