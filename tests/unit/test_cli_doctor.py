"""What `dist-ml doctor` makes of facts."""

from dataclasses import replace

import pytest

from dist_ml.cli import diagnosis
from dist_ml.cli.diagnosis import Finding
from dist_ml.cli.facts import RankFacts, WorldFacts
from dist_ml.comm.mpi import singletons_message

RANK = RankFacts(
    rank=0,
    host="a",
    cores=frozenset({0, 1}),
    host_cores=4,
    threads=1,
    shared_memory_bytes=1 << 32,
    shared_memory_free_bytes=1 << 31,
    vendor="MPICH 5.0.2",
    standard="5.0",
    thread_level="MULTIPLE",
)
SUMS = {"float32": True, "float64": True, "float16": True}
GOOD = WorldFacts(
    (RANK, replace(RANK, rank=1)), launched_size=2, node_sizes=(2,), raw_sums=SUMS, our_sums=SUMS
)


def finding(facts: WorldFacts, subject: str) -> Finding:
    return next(finding for finding in diagnosis.diagnose(facts) if finding.subject == subject)


def changed(**values: object) -> WorldFacts:
    """GOOD, with other facts on rank 1."""
    return replace(GOOD, ranks=(RANK, replace(RANK, rank=1, **values)))  # type: ignore[arg-type]


def test_a_good_world_has_nothing_to_mend() -> None:
    assert {
        (found.state, found.remedy)
        for found in diagnosis.diagnose(GOOD)
        if found.subject != "numba"
    } == {("ok", "")}
    assert finding(GOOD, "world").text == "2 ranks on 1 node"


@pytest.mark.parametrize(
    ("facts", "subject", "state", "words", "remedy"),
    [
        (
            changed(threads=8),
            "threads",
            "warn",
            "rank 1 on a runs 8 torch threads on 2 cores",
            "OMP_NUM_THREADS=2",
        ),
        (
            changed(threads=2),
            "cores",
            "warn",
            "2 ranks with 3 threads share 2 cores of a, which has 2 idle",
            "fewer ranks",
        ),
        (
            changed(vendor="Open MPI 5"),
            "MPI library",
            "fail",
            "MPICH 5.0.2, Open MPI 5",
            "the same one on all nodes",
        ),
        (
            changed(shared_memory_free_bytes=1 << 20),
            "/dev/shm",
            "warn",
            "4.3 GB on a, 1 MB free",
            "remove what dead runs left",
        ),
        (
            changed(shared_memory_bytes=1 << 26, shared_memory_free_bytes=1 << 26),
            "/dev/shm",
            "warn",
            "67 MB",
            "--shm-size",
        ),
        (
            changed(shared_memory_bytes=None, shared_memory_free_bytes=None),
            "/dev/shm",
            "warn",
            "a has none",
            "mount a tmpfs",
        ),
        (
            replace(GOOD, launched_size=4),
            "world",
            "fail",
            "2 ranks on 1 node, but the launcher says that it started 4",
            "launcher",
        ),
        (
            replace(GOOD, shared_window="RuntimeError: no"),
            "shared windows",
            "warn",
            "RuntimeError: no",
            "shared memory",
        ),
        (
            replace(GOOD, our_sums={"int32": False}),
            "sums",
            "fail",
            "wrong for int32",
            "another MPI",
        ),
        (
            replace(GOOD, raw_sums={**SUMS, "float64": False}),
            "raw MPI sums",
            "fail",
            "wrong for float64",
            "another MPI",
        ),
        (
            replace(GOOD, raw_sums={**SUMS, "float16": False}),
            "raw MPI sums",
            "ok",
            "float32, float64; bfloat16",
            "",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(
    facts: WorldFacts, subject: str, state: str, words: str, remedy: str
) -> None:
    found = finding(facts, subject)
    assert found.state == state
    assert words in found.text
    assert remedy in found.remedy


def test_a_low_thread_level_is_told_by_rank_0() -> None:
    found = finding(replace(GOOD, ranks=(replace(RANK, thread_level="SINGLE"),)), "thread level")
    assert (found.state, found.text[:17]) == ("warn", "MPI_THREAD_SINGLE")


def test_two_nodes_have_cores_of_their_own() -> None:
    facts = replace(changed(host="b", threads=2), node_sizes=(1, 1))
    assert finding(facts, "cores").state == "ok"
    assert finding(facts, "world").text == "2 ranks on 2 nodes (1 + 1)"


def test_singletons_under_slurm() -> None:
    alone = replace(RANK, vendor=None, standard=None, thread_level=None)
    found = finding(WorldFacts((alone,), 4, singletons=singletons_message(4, "MPICH")), "world")
    assert found.state == "fail"
    assert found.text.startswith("4 ranks were started, but MPICH joined them into 4 worlds")
    assert "srun --mpi=pmi2" in found.remedy
