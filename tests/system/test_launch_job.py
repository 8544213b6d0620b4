"""Jobs end, whatever their processes do: plain Python programs instead of ranks, so that no MPI is
needed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_ml.errors import ConfigError
from dist_ml.launch import process, shared_memory, stacks
from dist_ml.launch.first_death import FirstDeath
from dist_ml.launch.job import Command, Completed, run_all

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in (stacks.TIME_LIMIT, stacks.FOLDER)
}


def run(*programs: str, time_limit_seconds: float = 20.0) -> list[Completed]:
    commands = [
        Command([sys.executable, "-c", program], {**ENVIRONMENT, "RANK": str(k)})
        for k, program in enumerate(programs)
    ]
    return run_all(commands, time_limit_seconds=time_limit_seconds, capture=True)


def test_output_and_status_are_each_commands_own() -> None:
    first, second = run("print('one')", "import sys; sys.stderr.write('two'); sys.exit(3)")
    assert (first.returncode, first.stdout, first.stderr) == (0, "one\n", "")
    assert (second.returncode, second.stdout, second.stderr) == (3, "", "two")


def test_at_the_limit_every_rank_tells_where_it_stands() -> None:
    hang = "from dist_ml.launch import stacks; stacks.arm()\n"
    hang += "def waits_for_ever():\n  import time; time.sleep(100)\nwaits_for_ever()"
    start = time.monotonic()
    completed = run(hang, hang, time_limit_seconds=1.0)
    assert time.monotonic() - start < 8.0
    assert [(done.timed_out, done.returncode) for done in completed] == [(True, 124)] * 2
    assert completed[0].stacks.count("in waits_for_ever") == 2
    assert "rank 0 stood here" in completed[0].stacks
    assert "rank 1 stood here" in completed[0].stacks


def test_program_that_never_armed_is_ended_at_the_limit_all_the_same() -> None:
    start = time.monotonic()
    assert run("import time; time.sleep(100)", time_limit_seconds=0.3)[0].returncode == 124
    assert time.monotonic() - start < 5.0


def test_one_failure_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_ml.launch.job._FAILURE_SECONDS", 0.2)
    start = time.monotonic()
    failed, other = run("raise SystemExit(7)", "import time; time.sleep(100)")
    assert (failed.returncode, failed.timed_out, other.returncode) == (
        7,
        False,
        128 + signal.SIGTERM,
    )
    assert time.monotonic() - start < 5.0


def test_the_first_rank_that_was_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_ml.launch.job._FAILURE_SECONDS", 0.2)
    dies = "import os, time; print(os.getpid(), flush=True); time.sleep(1.5); "
    dies += "os.kill(os.getpid(), 9)"
    first, killed = run("import time; time.sleep(100)", dies)
    assert killed.returncode == 128 + signal.SIGKILL
    where = f"rank 1 on {socket.gethostname()} (process {int(killed.stdout)}) ended first"
    assert first.stderr == f"{where}: Killed (signal 9)\n"


@pytest.mark.parametrize("status", [0, 1, 2, 124, 130, 143])
def test_a_status_without_a_signal_names_nobody(status: int) -> None:
    watch = FirstDeath("DIST_ML_JOB=none")
    watch.close()
    assert watch.in_words(status) == ""


def test_the_time_limit_is_exact() -> None:
    """Ranks that start slowly write their stacks at the same moment as all others."""
    slow = "import time; time.sleep(1.0)\nfrom dist_ml.launch import stacks; stacks.arm()\n"
    slow += "time.sleep(100)"
    start = time.monotonic()
    (done,) = run(slow, time_limit_seconds=2.0)
    assert time.monotonic() - start < 4.0
    assert done.timed_out
    assert "rank 0 stood here" in done.stacks


def test_a_job_that_ended_in_time_is_not_told_as_ended() -> None:
    done, late = run("print('done')", "import time; time.sleep(100)", time_limit_seconds=1.0)
    assert (done.returncode, late.returncode) == (0, 124)
    (alone,) = run("import time; time.sleep(0.5)", time_limit_seconds=3.0)
    assert (alone.returncode, alone.timed_out, alone.stacks) == (0, False, "")


def test_segments_of_a_killed_launcher_are_removed_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed: list[str] = []
    monkeypatch.setattr("dist_ml.launch.job.remove_orphans", lambda **_: removed.append("looked"))
    monkeypatch.setattr("dist_ml.launch.job._start", lambda *_: removed.append("started"))
    with pytest.raises(AttributeError):  # there is no process to wait for
        run("pass")
    assert removed[:2] == ["looked", "started"]


def test_orphan_in_a_session_of_its_own_does_not_survive() -> None:
    done = run(
        "import subprocess; print(subprocess.Popen(['sleep', '100'], start_new_session=True).pid)"
    )[0]
    assert done.returncode == 0
    assert not is_running(int(done.stdout))


def launched(program: str, pid_file: Path) -> subprocess.Popen[bytes]:
    """A launcher whose program has begun, and has written its process id."""
    launcher = (
        "import os, sys; from dist_ml.launch.job import Command, run_all\n"
        f"run_all([Command([sys.executable, '-c', {program!r}], os.environ)], "
        "time_limit_seconds=50, capture=True)"
    )
    # TMPDIR: where a launcher that is killed leaves its folder
    environment = {**ENVIRONMENT, "TMPDIR": str(pid_file.parent)}
    started = subprocess.Popen(
        [sys.executable, "-c", launcher], env=environment, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    return started


def test_a_job_that_is_asked_to_stop_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    program = "import os, signal, sys, time; from pathlib import Path\n"
    program += f"told = lambda *_: (Path({str(tmp_path / 'told')!r}).touch(), sys.exit(0))\n"
    program += "signal.signal(signal.SIGUSR1, told)\n"
    program += f"Path({str(file)!r}).write_text(str(os.getpid())); time.sleep(50)"
    launcher = launched(program, file)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(20) == 0
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_launcher_that_is_ended_takes_its_job_along(ending: signal.Signals, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    )
    started = launched(program, pid_file)
    started.send_signal(ending)
    assert started.wait(10) != 0
    wait_until(lambda: not is_running(int(pid_file.read_text())))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_job_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """The program shrugs SIGTERM off; the second signal doesn't stop the clean-up."""
    pid_file = tmp_path / "pid"
    stubborn = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    program = f"{stubborn}open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    started = launched(program, pid_file)
    started.send_signal(number)
    time.sleep(0.5)
    assert started.poll() is None, "it has 30 s"
    started.send_signal(number)
    assert started.wait(4) != 0
    assert not is_running(int(pid_file.read_text()))


def test_a_lead_that_is_no_number_is_told_before_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_ML_LEAD_SECONDS", "2m")
    with pytest.raises(ConfigError, match="DIST_ML_LEAD_SECONDS=2m must be a number of seconds"):
        run("pass")


def test_marked_finds_processes_by_their_environment() -> None:
    marked = subprocess.Popen(
        ["sleep", "100"], env={**ENVIRONMENT, "DIST_ML_JOB": "test-of-marked"}
    )
    try:
        wait_until(lambda: process.marked("DIST_ML_JOB=test-of-marked") == [marked.pid])
    finally:
        marked.kill()
        marked.wait()


def test_only_unmapped_segments_of_mpi_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_SECONDS_TO_MAP", -1.0)
    names = ["mpich_shm_1_0", "mpich_shm_2_0", "sm_segment.host.0.1.0", "somebody_elses"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(4096))
    opened = f"file = open({str(tmp_path / names[1])!r}, 'r+b')"
    holds = f"import mmap, time; {opened}; m = mmap.mmap(file.fileno(), 0); "
    holds += "print(flush=True); time.sleep(100)"
    holder = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert sorted(file.name for file in shared_memory.remove_orphans(tmp_path)) == [
            names[0],
            names[2],
        ]
    finally:
        holder.kill()
        holder.communicate()
    assert sorted(file.name for file in tmp_path.iterdir()) == [names[1], names[3]]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie that only waits for its parent to look."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
