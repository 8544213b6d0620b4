"""What the emulated network would do on a machine that can make one: its hosts are stand-ins that
note the commands, its system tools are scripts.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_ml.errors import MachineError
from dist_ml.launch.emulated_network import EmulatedNetwork, LinkCounters, missing, network
from dist_ml.launch.emulated_network.hosts import Host, run_tool
from dist_ml.launch.job import Command, Completed


class NotingHost:
    """A host without namespaces: commands are noted, counters are given."""

    made: list["NotingHost"]
    fails: str = ""

    def __init__(self, name: str, addresses: str, own_processes: bool) -> None:
        self.name, self.addresses, self.own_processes = name, addresses, own_processes
        self.pid = 1000 + len(self.made)
        self.commands: list[tuple[str, list[str]]] = []
        self.shown = ""
        self.is_open = True
        self.made.append(self)

    def wait_until_up(self) -> None:
        if self.name == self.fails:
            raise MachineError(f"{self.name} is not up")

    def inside(self, folder: str | None = None) -> list[str]:
        return ["on", self.name]

    def network(self, tool: Sequence[str], lines: Sequence[str] = ()) -> str:
        self.commands.append((" ".join(tool), list(lines)))
        if tool[:2] == ["ip", "-json"]:
            return '[{"linkinfo": {"info_slave_data": {"state": "forwarding"}}}]'
        return self.shown

    def traffic(self) -> LinkCounters:
        return LinkCounters(10 * self.pid, self.pid)

    def close(self) -> None:
        self.is_open = False

    def ran(self, beginning: str) -> list[str]:
        return [tool for tool, _ in self.commands if tool.startswith(beginning)]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[NotingHost]:
    """The hosts that were made, the switch first; the remote shell's script is kept there, too."""
    NotingHost.made, NotingHost.fails = [], ""
    monkeypatch.setattr(network, "Host", NotingHost)
    monkeypatch.setattr(network, "missing", lambda: None)
    monkeypatch.setattr(
        network, "run_tool", lambda _, text: setattr(NotingHost.made[0], "script", text)
    )
    return NotingHost.made


def test_every_host_has_a_port_and_an_address_on_both_networks(hosts: list[NotingHost]) -> None:
    with EmulatedNetwork(3, "1gbit"):
        switch, *rest = hosts
        assert [host.name for host in rest] == ["h0", "h1", "h2"]
        assert [switch.own_processes, *(host.own_processes for host in rest)] == [False] + [
            True
        ] * 3
        (_, lines), *_ = [entry for entry in switch.commands if entry[0] == "ip -batch -"]
        for index, host in enumerate(rest):
            for port, interface, bridge in (("p", "eth0", "br0"), ("m", "mg0", "br1")):
                made = f"link add {port}{index} type veth peer name {interface} netns {host.pid}"
                joined = f"link set {port}{index} master {bridge} up"
                assert (
                    lines.index(f"link add {bridge} type bridge stp_state 0 forward_delay 0")
                    < (lines.index(made))
                    < lines.index(joined)
                )
        own = [lines for host in rest for tool, lines in host.commands if tool == "ip -batch -"]
        data, management = zip(*[(lines[0], lines[1]) for lines in own], strict=True)
        assert len({*data, *management}) == 6
        for index, line in enumerate(data):
            address = line.split()[2].removesuffix("/24")
            assert line.endswith("dev eth0")
            assert f"{address} h{index}\n" in rest[0].addresses
    assert not any(host.is_open for host in hosts)


def test_links_are_shaped_at_both_ends_and_as_told_last(hosts: list[NotingHost]) -> None:
    with EmulatedNetwork(2, "100mbit") as emulated:
        switch, *rest = hosts
        ends = [(switch, "p0"), (switch, "p1"), *((host, "eth0") for host in rest)]

        def shaped(host: NotingHost, interface: str) -> str:
            return host.ran(f"tc qdisc replace dev {interface} root tbf")[-1]

        for end in ends:
            assert "rate 100000000bit burst 32000b limit 1000000b" in shaped(*end)
        emulated.set_rate("10gbit")
        assert emulated.rate == "10gbit"
        for end in ends:
            # 1 ms of the rate as bucket, 32 ms as queue
            assert "rate 10000000000bit burst 1250000b limit 40000000b" in shaped(*end)
        for host in hosts:
            host.commands.clear()
        emulated.set_rate(None)
        assert [host.ran("tc qdisc del") for host in hosts] == [[], [], []], "nothing to take off"
        for host in hosts:
            host.shown = "qdisc tbf 8001: root"
        emulated.set_rate(None)
        assert [len(host.ran("tc qdisc del")) for host in hosts] == [2, 1, 1]
        with pytest.raises(MachineError, match="rate=fast is not a rate"):
            emulated.set_rate("fast")


def test_what_fails_while_it_is_built_leaves_no_host(hosts: list[NotingHost]) -> None:
    NotingHost.fails = "h1"
    with pytest.raises(MachineError, match="h1 is not up"), EmulatedNetwork(3):
        pass
    assert len(hosts) == 4
    assert not any(host.is_open for host in hosts)


@pytest.mark.parametrize("num", [0, -1, 201])
def test_numbers_of_hosts_that_cannot_be(num: int) -> None:
    with pytest.raises(MachineError, match=f"has 1 to 200 hosts, not {num}"):
        EmulatedNetwork(num)


def test_counters_are_differences_host_by_host(hosts: list[NotingHost]) -> None:
    with EmulatedNetwork(2) as emulated:
        now = emulated.traffic()
        assert now == [LinkCounters(10010, 1001), LinkCounters(10020, 1002)]
        assert now[1] - now[0] == LinkCounters(10, 1)
    with pytest.raises(AssertionError, match="only open within its `with`"):
        _ = emulated.at_head


def test_programs_without_mpi_get_torchs_variables_and_fill_host_after_host(
    hosts: list[NotingHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Command] = []

    def noted(commands: Sequence[Command], **limits: Any) -> list[Completed]:
        seen.extend(commands)
        assert limits == {"time_limit_seconds": 9.0, "capture": True}
        return [Completed(0, "", "", False, "") for _ in commands]

    monkeypatch.setattr(network, "run_all", noted)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with EmulatedNetwork(2) as emulated:
        done = emulated.run_each(
            ["program", "-x"], 3, time_limit_seconds=9.0, environment={"WORLD_SIZE": "7"}
        )
    assert len(done) == 3
    assert [list(command.argv) for command in seen] == [
        ["on", host, "program", "-x"] for host in ("h0", "h0", "h1")
    ]
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "OMP_NUM_THREADS")
    assert [[command.environment[name] for name in names] for command in seen] == [
        ["0", "0", "2", "7", "3"], ["1", "1", "2", "7", "3"], ["2", "0", "1", "7", "3"]
    ]  # fmt: skip
    assert {command.environment["GLOO_SOCKET_IFNAME"] for command in seen} == {"eth0"}
    addresses = hosts[1].addresses
    assert f"{seen[0].environment['MASTER_ADDR']} h0\n" in addresses


def test_mpi_keeps_its_data_on_the_shaped_interface_and_its_calibration_apart() -> None:
    slow, fast = EmulatedNetwork(2, "100mbit"), EmulatedNetwork(2, "1gbit")
    for flavour in ("mpich", "openmpi"):
        variables = slow.mpi_environment(flavour)
        assert any(value == "eth0" for value in variables.values())
        assert not any("mg0" in value for value in variables.values())
        assert variables["DIST_ML_NETWORK"] != fast.mpi_environment(flavour)["DIST_ML_NETWORK"]


def test_the_remote_shell_runs_a_command_in_its_hosts_namespaces(
    hosts: list[NotingHost], tmp_path: Path
) -> None:
    """As launchers call it: options first, then the host, then words that a shell is to join."""
    with EmulatedNetwork(2):
        script = tmp_path / "remote-shell"
        script.write_text(hosts[0].script)  # type: ignore[attr-defined]
    (tmp_path / "nsenter").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    for file in (script, tmp_path / "nsenter"):
        file.chmod(0o755)

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(script), *arguments], capture_output=True, text=True, check=False,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, timeout=20,
        )  # fmt: skip

    told = shell("-x", "-l", "root", "-p", "22", "h1", "hydra_pmi_proxy", "--id", "1").stdout
    assert told.startswith("<--target><1002><--net><--uts><--ipc><--pid><--mount><--wd=")
    assert told.endswith("<env><TMPDIR=/dev/shm><sh><-c><hydra_pmi_proxy --id 1>")
    wrong = shell("h7", "true")
    assert (wrong.returncode, wrong.stderr) == (1, "no host h7 in this network\n")


class TestMissing:
    def test_another_system_another_user_and_absent_tools_are_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network.os, "geteuid", lambda: 0)
        monkeypatch.setattr(network.shutil, "which", lambda tool: f"/sbin/{tool}")
        monkeypatch.setattr(network.sys, "platform", "linux")
        assert missing() is None
        monkeypatch.setattr(
            network.shutil, "which", lambda tool: None if tool in ("tc", "ip") else tool
        )
        assert re.match(r".* needs ip, tc; on Debian: apt-get install iproute2", missing() or "")
        monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
        assert "needs root" in (missing() or "")
        monkeypatch.setattr(network.sys, "platform", "darwin")
        assert missing() == "the emulated network needs Linux"
        with pytest.raises(MachineError, match="needs Linux"), EmulatedNetwork(2):
            pass


@pytest.fixture
def unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is found as `unshare` on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "unshare"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="hosts are Linux's")
class TestHost:
    def made(self, unshare: Path, script: str) -> Host:
        unshare.write_text(f"#!/bin/sh\n{script}\n")
        unshare.chmod(0o755)
        return Host("h0", "127.0.0.1 localhost\n", own_processes=False)

    def test_what_the_machine_refuses_is_told_in_its_own_words(self, unshare: Path) -> None:
        host = self.made(unshare, 'echo "unshare: unshare failed: Not permitted" >&2; exit 1')
        with pytest.raises(MachineError, match=r"h0 could not be made here: .* Not permitted; it"):
            host.wait_until_up()
        host.close()

    def test_a_host_lives_as_long_as_its_process_and_ends_when_closed(self, unshare: Path) -> None:
        host = self.made(unshare, "exec sleep 100")
        host.wait_until_up()
        assert Path(f"/proc/{host.pid}").exists()
        assert f"--target {host.pid} " in " ".join(host.inside("/"))
        assert "--wd=/" in host.inside("/")
        counters = host.traffic("lo")
        assert counters.sent_bytes == counters.received_bytes >= 0
        with pytest.raises(MachineError, match="h0 has no interface eth7 any more"):
            host.traffic("eth7")
        host.close()
        assert not Path(f"/proc/{host.pid}").exists()

    def test_one_that_never_comes_up_is_given_up(
        self, unshare: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dist_ml.launch.emulated_network.hosts._START_SECONDS", 0.05)
        host = self.made(unshare, "while true; do sleep 0.01; done")
        with pytest.raises(MachineError, match=r"was not up after 0\.05 s"):
            host.wait_until_up()
        host.close()


class TestTools:
    def test_a_tool_takes_text_and_gives_what_it_printed(self) -> None:
        assert run_tool(["cat"], "link set lo up\n") == "link set lo up\n"

    def test_its_failure_and_its_absence_are_told_with_the_command(self) -> None:
        with pytest.raises(MachineError, match=r"`sh -c 'echo no >&2; exit 2'` failed: no; the"):
            run_tool(["sh", "-c", "echo no >&2; exit 2"])
        with pytest.raises(MachineError, match="`no-such-tool -x` could not be run"):
            run_tool(["no-such-tool", "-x"])
