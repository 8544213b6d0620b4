"""A rank raises, stops, sleeps, leaves a collective out or calls another one, on real ranks: the
job ends soon and names the rank and the call, and its flight records tell them again. All products:
`dist-ml bench failures`. A rank that is killed in the middle of an exchange: `test_dead_ranks.py`.
"""

import re
from pathlib import Path

import pytest

from dist_ml.bench.failures import Case, checks, run_job
from dist_ml.cli import hang
from tests.unit.bench_worlds import bench_config, failed

NEVER_CAME = "rank 2 .*never came to allreduce"
STOOD = r"it stood in bench/faults.py:\d+"
# What is told, by the job and afterwards.
WORDS = {
    Case("dense", "stop", "mpich"): NEVER_CAME,
    Case("pipeline", "stop", "openmpi"): "rank 2 .*never made its side of receive from",
    Case("sparse", "sleep", "mpich"): f"rank 2 .*{STOOD}",
    Case("shared_memory", "sleep", "openmpi"): f"{NEVER_CAME} by shared_memory .*{STOOD}",
    Case("dense", "call_another", "openmpi"): f"{NEVER_CAME} .*it waits in barrier .*faults.py",
    Case("dense", "raise", "openmpi"): "rank 2 .*ValueError: a bug",
    Case("overlapped", "leave_out", "mpich"): "rank 2 .*(left out|came elsewhere than to) allreduc",
    Case("pipeline", "leave_out", "openmpi"): "rank 2 .*left out its side of receive from rank 2",
}


@pytest.mark.parametrize(("case", "words"), WORDS.items(), ids=[":".join(case) for case in WORDS])
def test_a_job_whose_last_rank_goes_wrong(
    case: Case, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bench_config("failures")
    ended, told = run_job(config, case, tmp_path)
    assert failed(checks([ended], config)) == [], told
    assert ended.diagnosed
    assert hang.main([str(tmp_path / "run")]) == 0
    written = capsys.readouterr().out
    for text in (told, written):
        assert re.search(words, text), text
    if case.fault == "stop":
        assert "is stopped (SIGSTOP" in told
    elif case.fault != "raise":
        assert "rank 2, MainThread, innermost last:" in written
    assert ("are the limit" in told) == (case.fault != "raise")
