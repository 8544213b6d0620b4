"""Hydra, through its compose API: YAML groups and overrides in, one plain resolved mapping out.

Never `@hydra.main`: it would compose on every rank, each with a `${now:}` of its own, and turn
exceptions into exits that leave the other ranks waiting. Composed once, on rank 0; the others get
the mapping. Conversion into dataclasses checks the keys, so an override may name any key: one that
doesn't exist is answered with those that do.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

import dist_ml
from dist_ml.cli.arguments import Request
from dist_ml.cli.usual_optimizer import usual_optimizers
from dist_ml.errors import ConfigError

T = TypeVar("T")

_MOST_POINTS = 10_000  # of a sweep


def config_folder() -> Path:
    """The configurations that come with the package: beside it in a checkout, inside it in a
    wheel.
    """
    package = Path(dist_ml.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configs folder in or beside {package}; reinstall the package")


def composed(request: Request) -> dict[str, Any]:
    """The whole configuration as a plain mapping, interpolations resolved."""
    with _hydra(request):
        return _plain(_compose(request), request)


def shown(request: Request) -> str:
    """What `--cfg job` prints."""
    with _hydra(request):
        config = _compose(request)
        if request.package:
            part = OmegaConf.select(config, request.package)
            if part is None:
                raise ConfigError(
                    f"--package {request.package} is not in the configuration; its keys are "
                    f"{', '.join(map(str, config))}"
                )
            config = (
                part if OmegaConf.is_config(part) else OmegaConf.create({request.package: part})
            )
        if request.resolve:
            _in_words(request, lambda: OmegaConf.resolve(config))
        return OmegaConf.to_yaml(config).rstrip()


def groups(request: Request) -> dict[str, list[str]]:
    """The options of each config group, ours and those of --config-dir. A group is a folder, an
    option a file in it.
    """
    options: dict[str, set[str]] = {}
    for folder in _folders(request):
        for file in folder.rglob("*.yaml"):
            options.setdefault(file.relative_to(folder).parent.as_posix(), set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(options.items()) if group != "."}


def names(request: Request) -> list[str]:
    """The whole configurations, ours and those of --config-dir."""
    return sorted({file.stem for folder in _folders(request) for file in folder.glob("*.yaml")})


def sweep_points(request: Request) -> list[tuple[str, ...]]:
    """The overrides of each point of a sweep: Hydra's grammar (a,b  choice(a,b)  range(1,4)
    glob(*)), the cartesian product.
    """
    choices = []
    with _hydra(request):
        for override in _parsed(request.overrides):
            if override.is_sweep_override():
                key = override.get_key_element()
                choices.append([f"{key}={value}" for value in _swept(override, request)])
            else:
                choices.append([str(override.input_line)])
    count = math.prod(map(len, choices))
    if count > _MOST_POINTS:
        raise ConfigError(f"a sweep has at most {_MOST_POINTS:,} points, not {count:,}; split it")
    return list(itertools.product(*choices))


def _swept(override: Override, request: Request) -> list[str]:
    """The values of one swept key; `ConfigError` for none, or for more than any sweep has."""
    iterator = _in_words(request, override.sweep_string_iterator)
    values = _in_words(request, lambda: list(itertools.islice(iterator, _MOST_POINTS + 1)))
    line = override.input_line
    if not values:
        raise ConfigError(f"{line} holds no value; give it some, as in {override.key_or_group}=1,2")
    if len(values) > _MOST_POINTS:
        raise ConfigError(f"{line} holds more than {_MOST_POINTS:,} values; give fewer")
    return values


def _compose(request: Request) -> DictConfig:
    known = groups(request)
    parsed = _parsed(request.overrides)
    overrides = [_lenient(override, known) for override in parsed] + usual_optimizers(parsed)
    _, *others = _folders(request)
    overrides += [f"hydra.searchpath=['file://{folder}']" for folder in others]
    return _in_words(request, lambda: compose(request.config_name, overrides))


def _lenient(override: Override, known_groups: Mapping[str, list[str]]) -> str:
    """`key=value` as `++key=value`, which also adds; strict conversion then tells of an unknown key
    and names those there are.
    """
    line = str(override.input_line)
    if override.is_sweep_override():
        listed = f"{override.key_or_group}=[{line.partition('=')[2]}]"
        raise ConfigError(
            f"{line} is several values; add --multirun for one run each, or write a list: {listed}"
        )
    if override.key_or_group in known_groups and isinstance(override.value(), list):
        options = ", ".join(known_groups[override.key_or_group])
        raise ConfigError(
            f"{line} must name one option of the group {override.key_or_group}: {options}"
        )
    chooses = override.key_or_group in known_groups and not isinstance(override.value(), dict)
    if chooses and isinstance(override.value(), bool):  # the name of an option, as of trace=true
        key, _, name = line.partition("=")
        return f"{key}='{name.strip().lower()}'"
    plain = override.type == OverrideType.CHANGE and override.package is None and not chooses
    return f"++{line}" if plain else line


def _parsed(overrides: tuple[str, ...]) -> list[Override]:
    return [_parsed_one(text) for text in overrides]


def _parsed_one(text: str) -> Override:
    try:
        (override,) = OverridesParser.create(_loader()).parse_overrides([text])
    except OverrideParseException as error:
        reason = next(
            (
                line
                for line in str(error).splitlines()
                if not line.startswith("Error parsing override")
            ),
            "no value",
        )
        reason = reason.removesuffix(": None")
        raise ConfigError(
            f"override {text!r} can't be read ({reason}); write key=value, in quotes if it has "
            "blanks or brackets"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"override {text[:60]!r}… is nested too deeply; flatten it") from error
    if not override.key_or_group:
        raise ConfigError(f"override {text!r} names no key; write key=value")
    if (
        override.key_or_group.split(".")[0] == "hydra"
        and override.key_or_group != "hydra.searchpath"
    ):
        raise ConfigError(
            f"override {text!r} has no effect: runs are placed by folder=<path>, sweeps by "
            "--multirun; leave it out"
        )
    return override


@contextmanager
def _hydra(request: Request) -> Iterator[None]:
    """Hydra set up for our configurations, and taken down after."""
    with initialize_config_dir(
        str(_folders(request)[0]), version_base="1.3", job_name=request.config_name
    ):
        yield


def _folders(request: Request) -> list[Path]:
    """Where configurations are looked for. Hydra takes the one to compose from the first, and
    groups from all of them.
    """
    if request.config_dir is None:
        return [config_folder()]
    folders = [config_folder(), request.config_dir]
    return (
        folders[::-1] if (request.config_dir / f"{request.config_name}.yaml").exists() else folders
    )


def _loader() -> Any:
    return GlobalHydra.instance().config_loader()


def _plain(config: DictConfig, request: Request) -> dict[str, Any]:
    mapping = _in_words(
        request, lambda: OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    )
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def _in_words(request: Request, call: Callable[[], T]) -> T:
    """Hydra's and OmegaConf's errors as `ConfigError`: the rule, the value, the remedy."""
    try:
        return call()
    except MissingConfigException as error:
        raise ConfigError(_missing(error, request)) from error
    except RecursionError as error:
        raise ConfigError("the configuration is nested too deeply; flatten it") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; set {error.full_key}=<value>") from error
    except InterpolationKeyError as error:
        raise ConfigError(
            f"{error.full_key}: {str(error.msg).splitlines()[0]}; correct the ${{…}}"
        ) from error
    except (ConfigCompositionException, OmegaConfBaseException, HydraException) as error:
        reasons = [
            str(e).splitlines()[0] for e in (error, error.__cause__) if e is not None and str(e)
        ]
        raise ConfigError(
            f"the configuration can't be composed: {': '.join(dict.fromkeys(reasons))}"
        ) from error
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        # What OmegaConf lets through from below, as for a key of a list that is no number.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"the configuration can't be composed: {reason}") from error


def _missing(error: MissingConfigException, request: Request) -> str:
    """Hydra's 'Could not find', with the closest of the names that there are."""
    group, _, name = str(error.missing_cfg_file or "").rpartition("/")
    known = groups(request).get(group) or names(request)
    close = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    what = f"{group}={name}" if group else f"--config-name {name}"
    return f"{what} is not one of {', '.join(known)}{hint}; --config-dir DIR adds your own"
