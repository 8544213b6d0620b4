"""Hydra, through its compose API: YAML groups and overrides in, one plain resolved mapping out.

Never `@hydra.main`: it would compose on every rank, each with a `${now:}` of its own, and turn exceptions into exits that leave
the other ranks waiting. Composed once, on rank 0; the others get the mapping. Conversion into dataclasses checks the keys, so
an override may name any key: one that doesn't exist is answered with those that do.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

import dist_ml
from dist_ml.cli.arguments import Request
from dist_ml.errors import ConfigError

T = TypeVar("T")


def config_folder() -> Path:
    """The configurations that come with the package: beside it in a checkout, inside it in a wheel."""
    package = Path(dist_ml.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configs folder in or beside {package}; reinstall the package")


def composed(request: Request) -> dict[str, Any]:
    """The whole configuration as a plain mapping, interpolations resolved."""
    with _hydra(request):
        return _plain(_compose(request))


def shown(request: Request) -> str:
    """What `--cfg job` prints."""
    with _hydra(request):
        config = _compose(request)
        if request.package:
            part = OmegaConf.select(config, request.package)
            if part is None:
                raise ConfigError(
                    f"--package {request.package} is not in the configuration; its keys are {', '.join(map(str, config))}"
                )
            config = part if OmegaConf.is_config(part) else OmegaConf.create({request.package: part})
        if request.resolve:
            _in_words(lambda: OmegaConf.resolve(config))
        return OmegaConf.to_yaml(config).rstrip()


def groups(request: Request) -> dict[str, list[str]]:
    """The options of each config group."""
    with _hydra(request):
        loader = _loader()
        return {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}


def sweep_points(request: Request) -> list[tuple[str, ...]]:
    """The overrides of each point of a sweep: Hydra's grammar (a,b  choice(a,b)  range(1,4)  glob(*)), the cartesian product."""
    import itertools

    choices = []
    with _hydra(request):
        for override in _parsed(request.overrides):
            if override.is_sweep_override():
                key = override.get_key_element()
                values = _in_words(lambda o=override: list(o.sweep_string_iterator()))  # type: ignore[misc]
                choices.append([f"{key}={value}" for value in values])
            else:
                choices.append([str(override.input_line)])
    return list(itertools.product(*choices))


def _compose(request: Request) -> DictConfig:
    overrides = [_lenient(override) for override in _parsed(request.overrides)]
    if request.config_dir is not None:
        overrides.append(f"hydra.searchpath=['file://{request.config_dir}']")
    return _in_words(lambda: compose(request.config_name, overrides))


def _lenient(override: Override) -> str:
    """`key=value` as `++key=value`, which also adds; strict conversion then tells of an unknown key and names those there are."""
    line = str(override.input_line)
    if override.is_sweep_override():
        raise ConfigError(f"{line} is several values; add --multirun for one run each, or write a list: {_as_list(override)}")
    plain = override.type is not None and override.type.name == "CHANGE" and override.package is None
    return f"++{line}" if plain and not _is_group(override) else line


def _as_list(override: Override) -> str:
    return f"{override.key_or_group}=[{str(override.input_line).partition('=')[2]}]"


def _is_group(override: Override) -> bool:
    if isinstance(override.value(), (dict, list)):
        return False
    return override.key_or_group in _loader().list_groups("") or override.key_or_group.startswith("hydra")


def _parsed(overrides: tuple[str, ...]) -> list[Override]:
    return [_in_words(lambda text=text: OverridesParser.create(_loader()).parse_override(text)) for text in overrides]  # type: ignore[misc]


@contextmanager
def _hydra(request: Request) -> Iterator[None]:
    """Hydra set up for our configurations, and taken down after."""
    with initialize_config_dir(str(config_folder()), version_base="1.3", job_name=request.config_name):
        yield


def _loader() -> Any:
    return GlobalHydra.instance().config_loader()


def _plain(config: DictConfig) -> dict[str, Any]:
    mapping = _in_words(lambda: OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def _in_words(call: Callable[[], T]) -> T:
    """Hydra's and OmegaConf's errors as `ConfigError`: the rule, the value, the remedy."""
    try:
        return call()
    except MissingConfigException as error:
        raise ConfigError(_missing(error)) from error
    except OverrideParseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"override {error.override!r} can't be read ({reason}); write key=value in quotes") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; set {error.full_key}=<value>") from error
    except InterpolationKeyError as error:
        raise ConfigError(f"{error.full_key}: {str(error.msg).splitlines()[0]}; correct the ${{…}}") from error
    except (ConfigCompositionException, OmegaConfBaseException, HydraException) as error:
        reasons = [str(e).splitlines()[0] for e in (error, error.__cause__) if e is not None and str(e)]
        raise ConfigError(f"the configuration can't be composed: {': '.join(dict.fromkeys(reasons))}") from error


def _missing(error: MissingConfigException) -> str:
    """Hydra's 'Could not find', with the closest of the names that there are."""
    wanted = str(error.missing_cfg_file or "")
    group, _, name = wanted.rpartition("/")
    options = [option for option in error.options or [] if not option.startswith("_")]
    if not options:
        folder = config_folder()
        options = sorted(file.stem for file in (folder / group).glob("*.yaml"))
    close = difflib.get_close_matches(name, options, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    what = f"{group}={name}" if group else f"--config-name {name}"
    return f"{what} is not one of {', '.join(options)}{hint}; --config-dir DIR adds your own"
