"""What stands on the command line of a configured command: Hydra's flags, and overrides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_ml.cli.terminal import Parser
from dist_ml.errors import ConfigError


@dataclass(frozen=True)
class Request:
    """One command line. `config_dir` is absolute."""

    overrides: tuple[str, ...]
    config_name: str
    config_dir: Path | None
    show: str | None  # --cfg
    resolve: bool
    package: str | None
    multirun: bool
    help: bool
    debug: bool


def parse(argv: Sequence[str], prog: str, config_name: str) -> Request:
    """`ConfigError` for a flag that doesn't exist; overrides are not looked into here."""
    parser = Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-name", "-cn", default=config_name, metavar="NAME")
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR")
    parser.add_argument("--cfg", "-c", choices=("job",))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p", metavar="KEY")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(list(argv))
    if options.config_dir is not None and not options.config_dir.is_dir():
        raise ConfigError(
            f"--config-dir {options.config_dir} is no folder; give one that holds YAML files or "
            "config groups"
        )
    return Request(
        overrides=tuple(options.overrides),
        config_name=options.config_name.removesuffix(".yaml"),
        config_dir=options.config_dir.absolute() if options.config_dir else None,
        show=options.cfg,
        resolve=options.resolve,
        package=options.package,
        multirun=options.multirun,
        help=options.help,
        debug=options.debug,
    )


FLAGS = """\
  --help, -h             this text
  --cfg job [--resolve]  print the composed configuration and stop; --package KEY: only that part
  --config-name NAME     compose NAME.yaml instead
  --config-dir DIR       look for configurations and groups in DIR too
  --multirun, -m         a run for each combination of values: ranks=1,2,4 optimizer.lr=0.1,0.2
  --debug                show tracebacks of errors that are the user's, too"""
