"""The tuner: measured once, kept whole, and never a reason to fail or to be slower."""

import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ml.kernels import kernels, openblas, processor, rates, tuner
from dist_ml.kernels.tuner import Shape, Tuner, best, valid_rates
from dist_ml.measure import cache

SHAPE = Shape(40, 50, 60)
RATES = {"torch": 10.0, "numpy": 20.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dist_ml" / "gemm-kernels.json"


def child(monkeypatch: pytest.MonkeyPatch, *endings: Any) -> list[dict[str, Any]]:
    """Let the measuring process end with these results, one a start: (status, output) or an error.
    What each was asked.
    """
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(json.loads(options["input"]))
        ending = endings[len(asked) - 1]
        if isinstance(ending, Exception):
            raise ending
        return subprocess.CompletedProcess(command, *ending, stderr="it broke")

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_only_clear_winners_are_chosen() -> None:
    assert best({"torch": 100.0, "numpy": 102.0}) == "torch"
    assert best({"torch": 100.0, "numpy": 110.0}) == "numpy"
    assert best({"numpy": 110.0}) == "torch"
    assert best({}) == "torch"


def test_a_class_is_the_nearest_power_of_two() -> None:
    assert Shape(40, 50, 60).key == Shape(33, 46, 90).key == "float32:NN:5x6x6"
    assert Shape(0, 1, 2, "TN", "float64").key == "float64:TN:0x0x1"


def test_only_what_was_never_measured_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Shape(640, 8, 8)
    asked = child(
        monkeypatch,
        (0, json.dumps({SHAPE.key: RATES})),
        (0, json.dumps({other.key: RATES})),
        (0, json.dumps({SHAPE.key: {"torch": 1.0}})),
    )
    found = Tuner(1)
    found.tune([SHAPE, SHAPE])
    found.tune([SHAPE, other])
    assert [request["shapes"] for request in asked] == [[list(SHAPE)], [list(other)]]
    assert [request["threads"] for request in asked] == [1, 1]
    found.tune([SHAPE], again=True)
    assert Tuner(1).rates(SHAPE) == {"torch": 1.0}
    assert Tuner(1).rates(other) == RATES


def test_saved_seconds_are_those_of_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, (0, json.dumps({SHAPE.key: RATES})))
    found = Tuner(1)
    assert found.saved_seconds(SHAPE, "numpy") == 0.0
    found.tune([SHAPE])
    flops = 2 * 40 * 50 * 60
    assert found.saved_seconds(SHAPE, "numpy") == pytest.approx(flops / 10e9 - flops / 20e9)
    assert found.saved_seconds(SHAPE, "openblas-haswell") == 0.0
    assert found.choose(SHAPE) == "numpy"


def test_a_kernel_that_kills_the_child_costs_only_the_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = child(monkeypatch, (-11, ""), (0, json.dumps({SHAPE.key: RATES})))
    found = Tuner(1)
    found.tune([SHAPE])
    assert [request["kernels"] for request in asked] == [kernels.usable(), ["torch", "numpy"]]
    assert found.rates(SHAPE) == RATES


@pytest.mark.parametrize(
    "endings",
    [
        [(1, ""), (1, "")],
        [OSError("no more processes")],
        [subprocess.TimeoutExpired("measure", 240)],
    ],
    ids=["status", "start", "time"],
)
def test_where_nothing_can_be_measured_torch_is_used_and_that_is_said(
    endings: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child(monkeypatch, *endings)
    found = Tuner(1)
    with caplog.at_level(logging.WARNING):
        found.tune([SHAPE])
    assert found.choose(SHAPE) == "torch"
    assert "torch's are used" in caplog.text


@pytest.mark.parametrize(
    "written",
    [
        "",
        "{",
        "[1, 2]",
        "null",
        '{"MACHINE": 3}',
        '{"MACHINE": {"KEY": [1]}}',
        '{"MACHINE": {"KEY": ["torch"]}}',
        '{"MACHINE": {"KEY": {"torch": "fast"}}}',
        '{"MACHINE": {"KEY": {"torch": -1.0}}}',
        '{"MACHINE": {"KEY": {"torch": NaN}}}',
        '{"MACHINE": {"KEY": {"cublas": 1.0}}}',
    ],
)
def test_a_damaged_cache_is_measured_anew(
    written: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.parent.mkdir()
    machine = json.dumps(tuner.machine(1))[1:-1]
    own_cache.write_text(written.replace("MACHINE", machine).replace("KEY", SHAPE.key))
    found = Tuner(1)
    assert found.choose(SHAPE) == "torch"
    child(monkeypatch, (0, json.dumps({SHAPE.key: RATES})))
    found.tune([SHAPE])
    assert Tuner(1).rates(SHAPE) == RATES


def test_only_rates_of_usable_kernels_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas, "available", lambda: ("haswell",))
    whole = {"a": {"torch": 1.0, "openblas-haswell": 2}, "b": {}}
    assert valid_rates(whole) == whole
    assert valid_rates({"a": {"openblas-skylakex": 1.0}, "b": RATES}) == {"b": RATES}


def test_writers_at_once_leave_a_whole_file(own_cache: Path) -> None:
    """Several nodes share the folder: a reader always finds whole JSON, and every entry in it is
    one that was written.
    """
    ended = threading.Event()

    def write(writer: int) -> None:
        for turn in range(20):
            values = {f"class {writer} {turn}": RATES}
            cache.merge("gemm-kernels", tuner.machine(1), values)

    def read() -> None:
        while not ended.is_set():
            if own_cache.exists():
                found = json.loads(own_cache.read_text())[tuner.machine(1)]
                assert all(rates == RATES for rates in found.values())

    failures: list[BaseException] = []

    def guarded(call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=guarded, args=(read,))
    writers = [threading.Thread(target=guarded, args=(write, i)) for i in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join(30)
    ended.set()
    reader.join(30)
    assert not failures
    assert [file.name for file in own_cache.parent.iterdir()] == [own_cache.name]


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    child(monkeypatch, (0, json.dumps({SHAPE.key: RATES})))
    found = Tuner(1)
    found.tune([SHAPE])
    assert found.rates(SHAPE) == RATES


@pytest.mark.parametrize("stored", ["NN", "NT", "TN", "TT"])
def test_operands_lie_as_the_shape_says(stored: str) -> None:
    c, a, b = rates.operands(Shape(3, 5, 7, stored, "float64"))
    assert (c.shape, a.shape, b.shape) == ((3, 5), (3, 7), (7, 5))
    assert [x.T.is_contiguous() for x in (a, b)] == [letter == "T" for letter in stored]
    assert {x.dtype for x in (c, a, b)} == {torch.float64}


def test_the_measuring_process_answers_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rates, "_ROUND_SECONDS", 1e-4)
    request = {"shapes": [list(SHAPE)], "kernels": ["torch", "numpy"], "threads": 1}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    threads = torch.get_num_threads()
    try:
        rates.main()
    finally:
        torch.set_num_threads(threads)
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {SHAPE.key}
    assert set(answer[SHAPE.key]) == {"torch", "numpy"}
    assert valid_rates(answer) == answer


def test_the_processor_is_named_by_its_first_core(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = "\n\n".join(
        f"processor\t: {core}\nmodel name\t: Chip {core}\ncpu family\t: 6\nflags\t: fma x{core}"
        for core in range(2)
    )
    monkeypatch.setattr(Path, "read_text", lambda _: cores)
    for function in (processor.name, processor.flags):
        function.cache_clear()
    try:
        assert processor.name() == "Chip 0 6 ? ?"
        assert processor.flags() == {"fma", "x0"}
    finally:
        for function in (processor.name, processor.flags):
            function.cache_clear()


def test_without_proc_the_processor_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    for function in (processor.name, processor.flags):
        function.cache_clear()
    try:
        assert processor.flags() == frozenset()
        assert processor.name()
    finally:
        for function in (processor.name, processor.flags):
            function.cache_clear()
