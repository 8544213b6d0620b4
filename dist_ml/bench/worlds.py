"""Where the parts of a benchmark are measured: on ranks that it starts, or on those that it was
started on.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError, MachineError
from dist_ml.launch import mpiexec
from dist_ml.launch.emulated_network import EmulatedNetwork


class Worlds(Protocol):
    """Runs the part called `part` on every rank of a world and returns what it returned on rank 0,
    a JSON value.

    `network`: on its hosts; `environment`: variables of the ranks. Only worlds that are started for
    the part can have them.
    """

    def measure(
        self,
        part: str,
        arguments: Mapping[str, Any],
        *,
        ranks: int | None = None,
        mpi: str | None = None,
        network: EmulatedNetwork | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any: ...

    def network(self, hosts: int, rate: str) -> AbstractContextManager[EmulatedNetwork]:
        """Hosts joined by links of `rate`, as tc writes it, for `measure`; gone at the end."""


class StartedWorlds:
    """Starts a new world for each part, under a time limit. `ranks` and `mpi` given here are the
    defaults of `measure`.
    """

    def __init__(self, ranks: int, mpi: str | None, time_limit_seconds: float = 600.0) -> None:
        self._ranks = ranks
        self._mpi = mpi
        self._time_limit_seconds = time_limit_seconds

    def measure(
        self,
        part: str,
        arguments: Mapping[str, Any],
        *,
        ranks: int | None = None,
        mpi: str | None = None,
        network: EmulatedNetwork | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        with tempfile.TemporaryDirectory(prefix="dist_ml-bench-") as folder:
            result = Path(folder) / "result.json"
            program = [
                sys.executable,
                "-m",
                "dist_ml.bench.part",
                part,
                json.dumps(dict(arguments)),
                str(result),
            ]
            done = mpiexec.run(
                program,
                ranks or self._ranks,
                mpi or self._mpi,
                time_limit_seconds=self._time_limit_seconds,
                capture=True,
                environment=environment,
                network=network,
            )
            if done.returncode != 0 or not result.exists():
                raise MachineError(
                    f"the ranks that measured {part} ended with status "
                    f"{done.returncode}:\n{done.stderr[-4000:]}"
                )
            return json.loads(result.read_text())

    def network(self, hosts: int, rate: str) -> AbstractContextManager[EmulatedNetwork]:
        return EmulatedNetwork(hosts, rate)


class ThisWorld:
    """Measures on the ranks that the benchmark itself was started on; every rank gets rank 0's
    result.
    """

    def __init__(
        self,
        world: Communicator,
        parts: Mapping[str, Callable[[Communicator, Mapping[str, Any]], Any]],
    ) -> None:
        self._world = world
        self._parts = parts

    def measure(
        self,
        part: str,
        arguments: Mapping[str, Any],
        *,
        ranks: int | None = None,
        mpi: str | None = None,
        network: EmulatedNetwork | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        if (
            ranks not in (None, self._world.size)
            or mpi is not None
            or network is not None
            or environment is not None
        ):
            wanted = f"{ranks or self._world.size} ranks" + (f" of {mpi}" if mpi else "")
            wanted += " in an emulated network" if network is not None else ""
            raise ConfigError(
                f"{part} wants {wanted}, but this run was started on {self._world.size}; without "
                "mpiexec it starts its own"
            )
        return self._world.broadcast_object(self._parts[part](self._world, arguments))

    def network(self, hosts: int, rate: str) -> AbstractContextManager[EmulatedNetwork]:
        raise ConfigError(
            f"this needs {hosts} hosts with links of {rate}, but its ranks were started already; "
            "run it without mpiexec, and it starts its own"
        )
