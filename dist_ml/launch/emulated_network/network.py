"""The emulated network as a whole: hosts, the switch between them, the rate of their links, and how
ranks are started on them.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from dist_ml.errors import MachineError
from dist_ml.launch.emulated_network.hosts import Host, LinkCounters, run_tool
from dist_ml.launch.emulated_network.rates import bits_per_second
from dist_ml.launch.job import Command, Completed, run_all
from dist_ml.partition import counts

_TOOLS = ("ip", "tc", "unshare", "nsenter")
_FORWARDING_SECONDS = 10.0
_MOST_HOSTS = 200

# What the launchers call instead of ssh: `remote-shell [options] HOST COMMAND…`. It stands in the
# switch's own /dev/shm.
_SHELL = """#!/bin/sh
while :; do case $1 in -l|-o|-p) shift 2;; -*) shift;; *) break;; esac; done
host=$1; shift
case $host in
{cases}
*) echo "no host $host in this network" >&2; exit 1;;
esac
exec nsenter --target "$pid" --net --uts --ipc --pid --mount --wd="$PWD" -- \\
    env TMPDIR=/dev/shm sh -c "$*"
"""
_SHELL_PATH = "/dev/shm/remote-shell"


def missing() -> str | None:
    """What this machine lacks for an emulated network, in words; None when nothing."""
    if not sys.platform.startswith("linux"):
        return "the emulated network needs Linux"
    if os.geteuid() != 0:
        return "the emulated network needs root, to make network namespaces"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return (
        f"the emulated network needs {', '.join(absent)}; on Debian: apt-get install iproute2 "
        "util-linux"
        if absent
        else None
    )


class EmulatedNetwork:
    """`hosts` hosts h0, h1, … on one switch, each by a link of `rate` in each direction (None: as
    fast as the machine).

    To be used in a `with` statement, from the main thread: the hosts end with the thread that made
    them. Raises `MachineError` where the machine can't do it.
    """

    def __init__(self, hosts: int, rate: str | None = None) -> None:
        if not 1 <= hosts <= _MOST_HOSTS:
            raise MachineError(f"an emulated network has 1 to {_MOST_HOSTS} hosts, not {hosts}")
        self.num_hosts = hosts
        self.rate = rate
        self._rate_bits_per_second = bits_per_second(rate) if rate is not None else None
        self.hosts: list[Host] = []
        self._switch: Host | None = None

    def __enter__(self) -> "EmulatedNetwork":
        if lacking := missing():
            raise MachineError(lacking)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all hosts and what runs on them."""
        for host in [*self.hosts, *([self._switch] if self._switch else [])]:
            host.close()
        self.hosts, self._switch = [], None

    # Measuring
    # ---------------------------------------------------------------------------------------------

    def traffic(self) -> list[LinkCounters]:
        """Each host's counters of its shaped link."""
        return [host.traffic() for host in self.hosts]

    def set_rate(self, rate: str | None) -> None:
        """Change the rate of all links, in both directions."""
        self._rate_bits_per_second = bits_per_second(rate) if rate is not None else None
        self.rate = rate
        for index, host in enumerate(self.hosts):
            self._shape(host, "eth0")
            self._shape(self.switch, f"p{index}")

    # Starting ranks
    # ---------------------------------------------------------------------------------------------

    @property
    def switch(self) -> Host:
        assert self._switch is not None, (
            "the emulated network is only open within its `with` statement"
        )
        return self._switch

    @property
    def at_head(self) -> list[str]:
        """The beginning of a command line that runs a launcher: beside the switch, on the
        management network.
        """
        return self.switch.inside()

    def mpiexec_options(self, flavour: str, ranks: int) -> list[str]:
        """What `mpiexec` of this flavour needs to start `ranks` ranks on the hosts, one host after
        the other.
        """
        placed = ",".join(
            f"h{index}:{count}"
            for index, count in enumerate(counts(ranks, self.num_hosts))
            if count
        )
        if flavour == "mpich":
            launcher = ["-launcher", "rsh", "-launcher-exec", _SHELL_PATH]
            return [*launcher, "-localhost", "10.78.0.1", "-hosts", placed]
        if flavour == "openmpi":
            settings = {
                "plm": "ssh",
                "plm_ssh_agent": _SHELL_PATH,
                "plm_ssh_no_tree_spawn": "1",
                "prte_if_include": "10.78.0.0/24",
            }
            options = [word for pair in settings.items() for word in ("--prtemca", *pair)]
            return [*options, "--host", placed, "--map-by", "slot"]
        raise MachineError(
            f"an emulated network starts MPICH and Open MPI, not {flavour}; choose --mpi mpich or "
            "--mpi openmpi"
        )

    def mpi_environment(self, flavour: str) -> dict[str, str]:
        """The variables that keep MPI's data on the shaped network."""
        network = {
            "DIST_ML_NETWORK": f"network {self.rate}"
        }  # what is calibrated at one rate doesn't hold at another
        if flavour == "mpich":
            provider = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0"}
            return network | provider | {"UCX_NET_DEVICES": "eth0"}
        # Its put protocol over TCP sends in one direction at a time; without it a link carries both
        # at once.
        flags = {"OMPI_MCA_btl_tcp_flags": "send,inplace,need-ack,need-csum,hetero-rdma"}
        return network | {
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_btl": "self,sm,tcp",
            "OMPI_MCA_btl_tcp_if_include": "eth0",
            **flags,
        }

    def run_each(
        self,
        program: Sequence[str],
        ranks: int,
        *,
        time_limit_seconds: float | None = None,
        capture: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> list[Completed]:
        """Start `program` once a rank without MPI, placed as `mpiexec` would, and wait for all;
        bounded like `job.run_all`.

        Each gets torch.distributed's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
        MASTER_PORT), with gloo on the shaped network.
        """
        commands: list[Command] = []
        for index, count in enumerate(counts(ranks, self.num_hosts)):
            for local_rank in range(count):
                own = {
                    "RANK": str(len(commands)),
                    "LOCAL_RANK": str(local_rank),
                    "LOCAL_WORLD_SIZE": str(count),
                }
                shared = {
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "10.77.0.10",
                    "MASTER_PORT": "29500",
                    "GLOO_SOCKET_IFNAME": "eth0",
                }
                variables = {
                    "OMP_NUM_THREADS": "1",
                    **os.environ,
                    **shared,
                    **own,
                    **(environment or {}),
                }
                commands.append(Command([*self.hosts[index].inside(), *program], variables))
        return run_all(commands, time_limit_seconds=time_limit_seconds, capture=capture)

    # Building
    # ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        names = [f"h{index}" for index in range(self.num_hosts)]
        addresses = "127.0.0.1 localhost\n10.78.0.1 head\n" + "".join(
            f"10.77.0.{10 + i} {name}\n" for i, name in enumerate(names)
        )
        self._switch = Host("head", addresses, own_processes=False)
        for name in names:
            self.hosts.append(Host(name, addresses, own_processes=True))
        for host in [self._switch, *self.hosts]:
            host.wait_until_up()
        self._switch.network(["ip", "-batch", "-"], self._switch_lines())
        for index, host in enumerate(self.hosts):
            host.network(["ip", "-batch", "-"], _host_lines(index))
        self._install_remote_shell()
        self.set_rate(self.rate)
        self._wait_until_forwarding()

    def _switch_lines(self) -> list[str]:
        """Two bridges, br0 of the shaped network and br1 of the management network, and a port of
        each for every host.
        """
        lines = ["link set lo up", "addr add 10.78.0.1/24 dev br1"]
        bridges = [
            f"link add {bridge} type bridge stp_state 0 forward_delay 0"
            for bridge in ("br0", "br1")
        ]
        lines = [*bridges, *lines, "link set br0 up", "link set br1 up"]
        for index, host in enumerate(self.hosts):
            for port, interface, bridge in (
                (f"p{index}", "eth0", "br0"),
                (f"m{index}", "mg0", "br1"),
            ):
                lines.append(f"link add {port} type veth peer name {interface} netns {host.pid}")
                lines.append(f"link set {port} master {bridge} up")
        return lines

    def _install_remote_shell(self) -> None:
        cases = "\n".join(f"{host.name}) pid={host.pid};;" for host in self.hosts)
        script = _SHELL.format(cases=cases)
        run_in = [
            *self.switch.inside("/"),
            "sh",
            "-c",
            f"cat >{_SHELL_PATH} && chmod +x {_SHELL_PATH}",
        ]
        run_tool(run_in, script)

    def _shape(self, host: Host, interface: str) -> None:
        bits = self._rate_bits_per_second
        if bits is None:
            if "tbf" in host.network(["tc", "qdisc", "show", "dev", interface]):
                host.network(["tc", "qdisc", "del", "dev", interface, "root"])
            return
        # A bucket of 1 ms and a queue of 32 ms let TCP fill 0.95 of the line; smaller ones lost up
        # to half of it.
        burst, limit = max(32_000, int(bits / 8e3)), max(1_000_000, int(bits * 0.032 / 8))
        line = ["tbf", "rate", f"{int(bits)}bit", "burst", f"{burst}b", "limit", f"{limit}b"]
        host.network(["tc", "qdisc", "replace", "dev", interface, "root", *line])

    def _wait_until_forwarding(self) -> None:
        """A bridge port drops what it gets for a moment after it came up."""
        deadline = time.monotonic() + _FORWARDING_SECONDS
        while time.monotonic() < deadline:
            ports = json.loads(
                self.switch.network(["ip", "-json", "-details", "link", "show", "type", "veth"])
            )
            if all(
                port["linkinfo"].get("info_slave_data", {}).get("state") == "forwarding"
                for port in ports
            ):
                return
            time.sleep(0.02)
        raise MachineError(
            f"the emulated network's switch did not forward after {_FORWARDING_SECONDS:g} s; is "
            "the machine overloaded?"
        )


def _host_lines(index: int) -> list[str]:
    addresses = [
        f"addr add 10.77.0.{10 + index}/24 dev eth0",
        f"addr add 10.78.0.{10 + index}/24 dev mg0",
    ]
    return [*addresses, *(f"link set {interface} up" for interface in ("lo", "eth0", "mg0"))]
