"""Run PyTorch's own tests of torch.distributed on gloo and on this project's backend: a table.

    python -m tests.torch_suite.table --worlds mpich:2 openmpi:2 mpich:4 openmpi:4 --write FILE

A batch of tests is one MPI job. A test that outlasts its limit, or whose failure leaves other ranks
waiting, ends its job; those after it go on in another. FILE gets a row a test; what is printed are
the counts, and each test that gloo passes and ours doesn't.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dist_ml.launch import mpiexec
from dist_ml.process_group.process_group import NAME

TESTS = Path(__file__).parent / "all_tests.py"
BATCH, TEST_SECONDS, WAIT_SECONDS = 60, 60, 10
JOB_SECONDS = 400.0
BACKENDS = ("gloo", NAME)


class Outcome(NamedTuple):
    """How a test ended, on all ranks together, and why where it didn't pass."""

    how: str
    why: str = ""


Outcomes = dict[str, Outcome]


def outcomes(backend: str, ranks: int, mpi: str, names: Sequence[str], gates: str) -> Outcomes:
    """Of all tests `names`, in as many jobs as that takes."""
    known: Outcomes = {}
    while left := [name for name in names if name not in known]:
        batch = left[:BATCH]
        seen, told = _job(backend, ranks, mpi, batch, gates)
        known |= seen
        unseen = [name for name in batch if name not in seen]
        if unseen and not (seen and told):  # nobody wrote down which test ended the job
            known[unseen[0]] = Outcome("failed", "ended its job, or outlasted its limit")
    return known


def _job(
    backend: str, ranks: int, mpi: str, names: Sequence[str], gates: str
) -> tuple[Outcomes, bool]:
    """What rank 0 wrote down, and whether the last says that ranks waited for a failed one."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "outcomes.jsonl"
        record.touch()
        options = ["--with-mpi", "-q", "-p", "no:cacheprovider", "-p", "tests.mpi.conftest"]
        options += ["-o", f"faulthandler_timeout={TEST_SECONDS}"]
        options += ["-o", "faulthandler_exit_on_timeout=true"]
        mpiexec.run(
            [sys.executable, "-m", "pytest", *options, str(TESTS)],
            ranks,
            mpi,
            time_limit_seconds=JOB_SECONDS,
            capture=True,
            environment={
                "OMP_NUM_THREADS": "1",
                "TORCH_SUITE_BACKEND": backend,
                "TORCH_SUITE_TESTS": ",".join(names),
                "TORCH_SUITE_GATES": gates,
                "DIST_ML_TEST_OUTCOMES": str(record),
                "DIST_ML_TEST_WAIT_SECONDS": str(WAIT_SECONDS),
            },
        )
        lines = [json.loads(line) for line in record.read_text().splitlines()]
    found: Outcomes = {}
    for line in lines:
        name = line["test"].split("::")[-1]
        if found.get(name, Outcome("passed")).how == "passed":  # a test's parts have lines, too
            found[name] = Outcome(line["outcome"], _reason(line["text"]))
    return found, bool(lines) and "other ranks still wait" in lines[-1]["text"]


def _reason(text: str) -> str:
    """The line of a traceback that says what was wrong."""
    lines = text.strip().splitlines()
    marked = [line[2:].strip() for line in lines if line.startswith("E  ")]
    return next(iter(marked or lines[-1:]), "")


def test_names() -> list[str]:
    """All tests of torch's, in the order in which they run."""
    from tests.torch_suite.in_process import imported

    base = imported(1, Path(tempfile.gettempdir()), "gloo").DistributedTest._DistTestBase
    return [name for name in dir(base) if name.startswith("test_")]


def rows(world: str, of: dict[str, Outcomes]) -> Iterator[str]:
    """A line a test: how it ended on gloo, on ours, and why not."""
    for name in sorted(of["gloo"]):
        gloo, ours = (of[backend][name] for backend in BACKENDS)
        why = ours.why if ours.how != "passed" else gloo.why
        yield f"| {world} | {name} | {gloo.how} | {ours.how} | {why.replace('|', '/')} |"


def summary(world: str, of: dict[str, Outcomes]) -> Iterator[str]:
    """The counts, and each test that gloo passes and ours doesn't."""
    passed = [name for name, outcome in of["gloo"].items() if outcome.how == "passed"]
    lost = [name for name in passed if of[NAME][name].how != "passed"]
    counts = [Counter(outcome.how for outcome in of[backend].values()) for backend in BACKENDS]
    yield (
        f"{world}: gloo passes {len(passed)}, ours {counts[1]['passed']}, "
        f"and all but {len(lost)} of gloo's ({counts[0]['skipped']} are left out)"
    )
    yield from (f"    {name} {of[NAME][name].how}: {of[NAME][name].why}" for name in lost)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    worlds = ["mpich:2", "openmpi:2", "mpich:4", "openmpi:4"]
    parser.add_argument("--worlds", nargs="+", default=worlds, metavar="MPI:RANKS")
    parser.add_argument("--tests", nargs="+", help="these alone")
    parser.add_argument("--gates", default="gloo", help="the backend whose tests are run")
    parser.add_argument("--write", type=Path, help="a row a test, in Markdown")
    options = parser.parse_args(argv)
    names = options.tests or test_names()
    table = ["| ranks | test | gloo | ours | why not |", "|---|---|---|---|---|"]
    on_gloo: dict[str, Outcomes] = {}
    for world in options.worlds:
        mpi, ranks = world.split(":")
        if ranks not in on_gloo:  # which is the same under either MPI
            on_gloo[ranks] = outcomes("gloo", int(ranks), mpi, names, options.gates)
        ours = outcomes(NAME, int(ranks), mpi, names, options.gates)
        of = {"gloo": on_gloo[ranks], NAME: ours}
        table += rows(world, of)
        sys.stdout.write("\n".join(summary(world, of)) + "\n")
        sys.stdout.flush()
        if options.write:
            options.write.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
