"""The benchmark of kills: what is planned, what a kill has left, and what its checks see."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dist_ml.bench import kills
from dist_ml.bench.killed_run import VICTIMS, Death, Kill, death_of, plan, unlike_losses
from dist_ml.bench.kills import KilledRun
from dist_ml.errors import ConfigError
from tests.checkpoint_world import save_from, state
from tests.unit.bench_worlds import bench_config, failed

KILL = Kill("a rank", 0, 0.0, None)


def test_every_other_kill_is_in_a_save_and_each_seed_has_its_own() -> None:
    made = plan(40, 3, 0.5, "1 mpich")
    assert made == plan(40, 3, 0.5, "1 mpich") != plan(40, 3, 0.5, "2 mpich")
    assert [kill.delay_seconds is not None for kill in made] == [False, True] * 20
    assert {kill.victim for kill in made} == {*VICTIMS}
    assert {kill.rank for kill in made} == {0, 1, 2}
    assert all(0 <= kill.wait_seconds <= 0.5 for kill in made)


def test_what_a_kill_has_left(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert "no committed checkpoint" in death_of(tmp_path, KILL).problem
    save_from(state(), folder, 5)
    assert death_of(tmp_path, KILL) == Death("a rank", False, 5, "")
    newer = save_from(state(), folder, 7)
    (newer / "rank-0000.safetensors").write_bytes(b"cut")
    assert "rank-0000" in death_of(tmp_path, KILL).problem, "a kill never leaves damage"
    (newer / "COMMIT").unlink()
    assert death_of(tmp_path, KILL) == Death("a rank", True, 5, "")
    newer.rename(folder / "step-7.tmp")
    assert death_of(tmp_path, KILL) == Death("a rank", True, 5, "")


@pytest.mark.parametrize(
    ("losses", "unlike"),
    [
        ([(0, 0.5), (1, 0.25)], 0),
        ([(0, 0.5), (1, 0.25000000000000006)], 1),
        ([(0, 0.5)], 1),
        ([(0, 0.5), (1, 0.25), (2, 0.1)], 1),
        ([(0, 0.5), (0, 0.5), (1, 0.25)], 1),
    ],
    ids=["alike", "last bit", "missing", "more", "doubled"],
)
def test_unlike_losses(losses: list[tuple[int, float]], unlike: int, tmp_path: Path) -> None:
    for name, steps in {"killed": losses, "whole": [(0, 0.5), (1, 0.25)]}.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in steps]
        evaluation = json.dumps({"step": 1, "test_loss": 9.0})
        (tmp_path / name / "metrics.jsonl").write_text("\n".join([*lines, evaluation, ""]))
    assert unlike_losses(tmp_path / "killed", tmp_path / "whole") == unlike


IN_SAVE, ELSEWHERE = Death("a rank", True, 5, ""), Death("all ranks", False, 9, "")
GOOD = KilledRun([IN_SAVE, ELSEWHERE, ELSEWHERE, ELSEWHERE], 4, 0, None)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({}, []),
        ({"survived": 3}, ["kills survived"]),
        ({"deaths": [ELSEWHERE] * 4}, ["kills within a save"]),
        ({"unlike_losses": 1}, ["losses unlike"]),
        ({"difference": "at the end: x"}, ["runs unlike"]),
    ],
)
def test_what_is_lost_is_seen(changed: dict[str, Any], what: list[str]) -> None:
    made = kills.checks([GOOD, dataclasses.replace(GOOD, **changed)], 8)
    assert failed(made) == what


def test_a_row_has_the_first_problem() -> None:
    damaged = dataclasses.replace(IN_SAVE, problem="step-5: cut")
    runs = [GOOD, KilledRun([damaged], 0, 3, "at step 7: loss 1 and 2")]
    row = kills.record("mpich", True, runs, 12.0)
    assert (row["kills"], row["of a rank"], row["of the launcher"]) == (5, 2, 0)
    assert (row["within a save"], row["runs"], row["seconds a kill"]) == (2, 2, 2.4)
    assert row["problem"] == "step-5: cut"
    assert kills.record("mpich", True, [GOOD], 1.0)["problem"] is None


@pytest.mark.parametrize(
    "override", ["ranks=0", "kills=0", "longest_wait_seconds=-1", "time_limit_seconds=0"]
)
def test_what_can_not_be_killed_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        bench_config("kills", override)
