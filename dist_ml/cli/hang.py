"""`dist-ml doctor hang RUN`: why the ranks of a run waited for each other, from the flight records
that they left; no MPI.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dist_ml.cli import terminal
from dist_ml.cli.terminal import Parser
from dist_ml.errors import DataError
from dist_ml.flight import record_file, torch_export
from dist_ml.flight.diagnosis import Finding, diagnose
from dist_ml.flight.flight import Flight
from dist_ml.train import logs
from dist_ml.train.run_folder import RunFolder

_MAIN = "MainThread"


def main(argv: Sequence[str]) -> int:
    """0; `DataError` where the run left no records."""
    parser = Parser(prog="dist-ml doctor hang", description=__doc__)
    parser.add_argument(
        "run", type=Path, help="the folder of a run that hung, or that a script named as `flight`"
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="write the records as torch's flight-recorder analyser reads them",
    )
    parser.add_argument("--json", action="store_true", help="print the finding as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors, too")
    options = parser.parse_args(argv)
    flights = _flights(options.run)
    finding = diagnose(flights)
    if options.json:
        terminal.say(json.dumps(vars(finding)))
    else:
        terminal.say("\n".join(_told(options.run, flights, finding)))
    if options.export is not None:
        torch_export.export(flights, options.export)
        terminal.say(
            f"\nwritten for: python -m torch.distributed.flight_recorder.fr_trace "
            f"{options.export} --prefix {torch_export.PREFIX}"
        )
    return 0


def _flights(run: Path) -> dict[int, Flight]:
    if not run.is_dir():
        raise DataError(f"{run} is no folder; give the folder of a run")
    flights = record_file.read_folder(RunFolder(run).log) or record_file.read_folder(run)
    if not flights:
        raise DataError(
            f"{run} holds no flight records (log/flight-….json); ranks write them when a step "
            "exceeds fault.watchdog, when one of them fails, and at SIGUSR2; a script's with "
            "dist_ml.init(flight=…)"
        )
    return flights


def _told(run: Path, flights: Mapping[int, Flight], finding: Finding) -> list[str]:
    failure = logs.first_failure(run)
    lines = [f"the run said: {failure}", ""] if failure else []
    lines += [finding.words, ""]
    lines += [_line(flight) for _, flight in sorted(flights.items())]
    size = max(flight.size for flight in flights.values())
    if absent := [str(rank) for rank in range(size) if rank not in flights]:
        lines.append(f"no record of: rank {', '.join(absent)}")
    for rank in finding.ranks:
        if rank in flights:
            lines += ["", *_stacks(flights[rank])]
    return lines


def _line(flight: Flight) -> str:
    """What one rank waits in, or did last."""
    step = "" if flight.step is None else f"step {flight.step}: "
    waiting = [call for call in flight.open_calls if call.state == "started"]
    if waiting:
        seconds = flight.written - (waiting[0].waited or waiting[0].entered)
        did = f"waited {seconds:.1f} s in {waiting[0]} at {waiting[0].place}"
    elif flight.calls:
        last = flight.calls[-1]
        did = f"waited for nothing; its last call was {last} at {last.place}"
    else:
        did = "has communicated nothing"
    written = time.strftime("%H:%M:%S", time.localtime(flight.written))
    return f"rank {flight.rank} on {flight.host}, {written}: {step}{did}"


def _stacks(flight: Flight) -> list[str]:
    """Of the main thread, and of those that communicate for it."""
    threads = sorted(flight.threads, key=lambda name: name != _MAIN)
    lines = []
    for name in threads:
        if name == _MAIN or any("comm/" in line for line in flight.threads[name]):
            lines += [f"rank {flight.rank}, {name}, innermost last:"]
            lines += [f"    {line}" for line in flight.threads[name]]
    return lines
