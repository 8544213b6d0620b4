"""Numbers on the command line that mean nothing, or too much."""

import argparse

import pytest

from dist_ml.cli import main, quantities


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("04", 4), ("16", 16)])
def test_ranks(text: str, value: int) -> None:
    assert quantities.number_of_ranks(text) == value


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "two", "", "٣", "9" * 30, "1_0"])
def test_no_number_of_ranks(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give 1 or more"):
        quantities.number_of_ranks(text)


def test_more_ranks_than_a_machine_can_start() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give at most"):
        quantities.number_of_ranks("999999999")


@pytest.mark.parametrize("text", ["0.5", "1", "1e3"])
def test_a_time_limit(text: str) -> None:
    assert quantities.time_limit(text) == float(text)


@pytest.mark.parametrize("text", ["nan", "-1", "0", "inf", "-inf", "soon", "", "1e300"])
def test_no_time_limit(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time limit"):
        quantities.time_limit(text)


@pytest.mark.parametrize("command", [["launch"], ["bench", "step"]], ids=["launch", "bench"])
@pytest.mark.parametrize(
    "flag",
    [("--time-limit", "nan"), ("--time-limit=-1",), ("-n", "0"), ("-n", "-3"), ("-n", "x")],
    ids=" ".join,
)
def test_commands_refuse_them_in_words(
    command: list[str], flag: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    name = [*command[:1], *flag, *command[1:]] if command[0] == "bench" else [*command, *flag]
    assert main.main([*name, *(["train"] if command[0] == "launch" else [])]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: argument ")
    assert "Traceback" not in said.err
