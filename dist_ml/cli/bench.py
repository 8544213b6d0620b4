"""`dist-ml bench NAME`: run a benchmark, print its table and a line a check, and write JSON if
asked.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dist_ml.cli import arguments, compose, configured, ranks, terminal
from dist_ml.cli.quantities import number_of_ranks, time_limit
from dist_ml.cli.tables import pairs, print_table
from dist_ml.config.convert import from_mapping
from dist_ml.errors import ConfigError

if TYPE_CHECKING:
    from dist_ml.bench.form import Record, Result
    from dist_ml.bench.worlds import Worlds

PROGRAM = "dist-ml bench"
_FLAGS = """\
  -n RANKS               ranks that it starts (default: what the benchmark is made for)
  --mpi mpich|openmpi    the MPI that it starts them with
  --json FILE            write environment, records and checks to FILE
  --format table|osu     of what is printed; osu: latencies alone, as the OSU micro-benchmarks
                         print them (allreduce, collectives)
  --check                exit with status 1 when a check fails
  --time-limit SECONDS   for each world that it starts (default 600)"""


def main(argv: Sequence[str]) -> int:
    """Run one benchmark on ranks that it starts, or on those that it was started on."""
    parser = terminal.Parser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("-n", dest="ranks", type=number_of_ranks)
    parser.add_argument("--mpi", choices=("mpich", "openmpi", "system"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--format", choices=("table", "osu"), default="table")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--time-limit", type=time_limit, default=600.0)
    options, rest = parser.parse_known_args(list(argv))
    if not rest or rest[0] in ("--help", "-h"):
        terminal.say(_help())
        return 0
    return _Command(rest[0], options, rest[1:]).run()


class _Command:
    def __init__(self, name: str, options: Any, rest: Sequence[str]) -> None:
        from dist_ml.bench.benches import BENCHES

        if name not in BENCHES:
            raise ConfigError(f"unknown benchmark {name!r}; there are {', '.join(BENCHES)}")
        self.bench = BENCHES[name]
        self.name = name
        if options.format == "osu" and self.bench.latencies is None:
            able = [each for each, bench in BENCHES.items() if bench.latencies is not None]
            raise ConfigError(
                f"--format osu has no effect on {name}: it tells latencies of allreduces by size; "
                f"use it with {' or '.join(able)}"
            )
        self.options = options
        self.request = arguments.parse(rest, f"{PROGRAM} {name}", config_name=f"bench/{name}")

    def run(self) -> int:
        from dist_ml.comm import mpi

        if self.request.help or self.request.show:
            return configured.show(self.request, self.bench.config, f"{PROGRAM} {self.name}")
        if mpi.launched():
            return ranks.run_on_ranks(self._on_these_ranks, self.request.debug)
        from dist_ml.bench.worlds import StartedWorlds

        worlds = StartedWorlds(
            self.options.ranks or self.bench.ranks, self.options.mpi, self.options.time_limit
        )
        return self._end(self._measure(compose.composed(self.request), worlds))

    def _on_these_ranks(self, world: Any) -> int:
        from dist_ml.bench.benches import PARTS
        from dist_ml.bench.worlds import ThisWorld
        from dist_ml.comm.agreement import from_root

        mapping = from_root(world, lambda: compose.composed(self.request))
        result = self._measure(mapping, ThisWorld(world, PARTS))
        status = self._end(result) if world.rank == 0 else 0
        return int(world.broadcast_object(status))

    def _measure(self, mapping: dict[str, Any], worlds: "Worlds") -> "Result":
        return self.bench.run(from_mapping(self.bench.config, mapping), worlds)

    def _end(self, result: "Result") -> int:
        """Show the result, on the one rank that does."""
        from dist_ml.bench.osu import allreduce_text
        from dist_ml.measure.environment import environment

        if self.options.format == "osu" and self.bench.latencies is not None:
            terminal.say(allreduce_text(self.bench.latencies(result)))
        else:
            show(result)
        if self.options.json is not None:
            try:
                self.options.json.write_text(
                    json.dumps(result.to_json(environment()), indent=2) + "\n"
                )
            except OSError as error:
                raise ConfigError(
                    f"--json {self.options.json} can't be written: {error.strerror}"
                ) from error
        return 1 if self.options.check and not result.passed else 0


def show(result: "Result") -> None:
    """One table for each set of columns that the records have, what all its rows have in common in
    a line above it; then a line a check.
    """
    console = Console(highlight=False)
    tables: dict[tuple[str, ...], list[Record]] = {}
    for record in result.records:
        tables.setdefault(tuple(record), []).append(record)
    for columns, records in tables.items():
        common = [name for name in columns if len({_cell(record[name]) for record in records}) == 1]
        if len(records) == 1 or len(common) == len(columns):
            common = []
        for line in pairs([(name, _cell(records[0][name])) for name in common], console.width):
            console.print(line, soft_wrap=True, markup=False)
        shown = [name for name in columns if name not in common]
        cells = [[_cell(record[name]) for name in shown] for record in records]
        numeric = [not isinstance(records[0][name], str) for name in shown]
        print_table(console, shown, cells, numeric)
    for check in result.checks:
        terminal.say(str(check))


def _cell(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else "-"
        if value is None
        else str(value)
    )


def _help() -> str:
    from dist_ml.bench.benches import BENCHES

    width = max(map(len, BENCHES))
    lines = [f"  {name:{width}}  {bench.help}" for name, bench in BENCHES.items()]
    return "\n".join(
        [f"usage: {PROGRAM} NAME [flags] [overrides]", "", *lines, "", "Flags:", _FLAGS]
    )
