"""Worlds for tests of benchmarks: what was measured is given, or measured on threads; and their
configurations and results.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from dist_ml.bench.bench import Part
from dist_ml.bench.benches import BENCHES
from dist_ml.bench.form import Check, Result
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.loopback import Loopback
from dist_ml.config.convert import from_mapping
from tests import configurations
from tests.thread_world import run_ranks


def bench_config(name: str, *overrides: str) -> Any:
    """A benchmark's configuration."""
    return from_mapping(
        BENCHES[name].config, configurations.mapping(*overrides, name=f"bench/{name}")
    )


def failed(checks: Iterable[Check]) -> list[str]:
    """The names of those that did not pass."""
    return [check.name for check in checks if not check.passed]


def only_finite(result: Result) -> None:
    """JSON that a strict reader takes, and checks that a terminal of 80 columns shows whole."""
    json.loads(json.dumps(result.to_json({})), parse_constant=pytest.fail)
    assert [str(check) for check in result.checks if len(str(check)) > 80] == []


class GivenWorlds:
    """Returns what `found` holds for a part, whatever the ranks; remembers the arguments."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = found
        self.arguments: list[tuple[str, int | None, dict[str, Any]]] = []
        self.rates: list[str] = []

    def measure(
        self, part: str, arguments: Mapping[str, Any], *, ranks: int | None = None, **_: Any
    ) -> Any:
        self.arguments.append((part, ranks, dict(arguments)))
        found = self.found[part]
        return found(ranks, arguments) if callable(found) else found

    @contextmanager
    def network(self, hosts: int, rate: str) -> Iterator["GivenNetwork"]:
        yield GivenNetwork(hosts, rate, self)


class GivenNetwork:
    """No network at all, with the attributes of one."""

    def __init__(self, hosts: int, rate: str, worlds: GivenWorlds) -> None:
        self.num_hosts, self.rate, self._worlds = hosts, rate, worlds

    def set_rate(self, rate: str) -> None:
        self.rate = rate
        self._worlds.rates.append(rate)


def alone(part: Part, arguments: Mapping[str, Any]) -> Any:
    """The part on one rank."""
    return part(Communicator(Loopback()), arguments)


def on_threads(size: int, part: Part, arguments: Mapping[str, Any]) -> Any:
    """The part on `size` ranks; what rank 0 returned."""
    return run_ranks(size, lambda comm: part(comm, arguments))[0]
