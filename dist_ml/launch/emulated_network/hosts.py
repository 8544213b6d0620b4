"""One host of the emulated network, or its switch: a process that holds namespaces open, and ways
to run commands in them.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_ml.errors import MachineError
from dist_ml.launch.process import end_with_parent

_START_SECONDS = 10.0
_COMMAND_SECONDS = 20.0

# A process that ignores SIGCHLD is never left with zombies, and as process 1 of a host it inherits
# every orphan there.
_HOLD = "trap '' CHLD; exec sleep infinity"


@dataclass(frozen=True)
class LinkCounters:
    """Bytes that one host's shaped interface has sent and received, headers included."""

    sent_bytes: int
    received_bytes: int

    def __sub__(self, before: "LinkCounters") -> "LinkCounters":
        return LinkCounters(
            self.sent_bytes - before.sent_bytes, self.received_bytes - before.received_bytes
        )


class Host:
    """Namespaces that live as long as a process of this machine does.

    `pid` is that process as seen from this machine. Killing it ends everything inside where the
    host has processes of its own (`own_processes`); the switch has not: the launchers there must
    see the hosts' processes.
    """

    def __init__(self, name: str, addresses: str, own_processes: bool) -> None:
        self.name = name
        kinds = [
            "--net",
            "--uts",
            "--mount",
            *(
                ["--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
                if own_processes
                else []
            ),
        ]
        # TCP's oldest congestion control is the one that every kernel has and lets a namespace
        # choose. The machine's own default may not suit: BBR stops for 200 ms now and then to look
        # for a shorter way, 0.4 of what 40 MB take at 1 Gbit/s. And a connection goes on after a
        # pause as fast as before, as on networks that are set up for MPI. The host's own /dev/shm
        # is also its TMPDIR: Open MPI's session folders of several hosts must not meet.
        setup = [
            f"hostname {name}",
            "echo reno >/proc/sys/net/ipv4/tcp_congestion_control",
            "echo 0 >/proc/sys/net/ipv4/tcp_slow_start_after_idle",
            "mount -t tmpfs tmpfs /dev/shm",
            f"printf %s {shlex.quote(addresses)} >/dev/shm/hosts",
            "mount --bind /dev/shm/hosts /etc/hosts",
            _HOLD,
        ]
        self._process = subprocess.Popen(
            ["unshare", *kinds, "--propagation", "private", "sh", "-ec", "\n".join(setup)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=end_with_parent(signal.SIGKILL),  # unshare shrugs SIGTERM off
        )
        self.pid = 0
        self._own_processes = own_processes

    def wait_until_up(self) -> None:
        """Until the namespaces are set up; `MachineError` with what unshare or mount said when that
        fails.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                words = self._process.stderr.read().decode(errors="replace").strip()
                raise MachineError(
                    f"the emulated network's host {self.name} could not be made here: {words}; it "
                    "needs real root, not a container's"
                )
            pid = self._holder()
            if pid and Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
                self.pid = pid
                return
            time.sleep(0.005)
        raise MachineError(
            f"the emulated network's host {self.name} was not up after {_START_SECONDS:g} s; is "
            "the machine overloaded?"
        )

    def _holder(self) -> int:
        if not self._own_processes:
            return self._process.pid
        children = (
            Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        )
        return int(children[0]) if children else 0

    def inside(self, folder: str | None = None) -> list[str]:
        """The beginning of a command line that runs the rest on this host, in `folder` (default:
        the current one).
        """
        kinds = ["--net", "--uts", "--mount", *(["--ipc", "--pid"] if self._own_processes else [])]
        return [
            "nsenter",
            "--target",
            str(self.pid),
            *kinds,
            f"--wd={folder or os.getcwd()}",
            "env",
            "TMPDIR=/dev/shm",
        ]

    def network(self, tool: Sequence[str], lines: Sequence[str] = ()) -> str:
        """Run `ip` or `tc` in this host's network, with `lines` as its batch; gives what it
        printed.
        """
        return run_tool(["nsenter", "--target", str(self.pid), "--net", *tool], "\n".join(lines))

    def traffic(self, interface: str = "eth0") -> LinkCounters:
        """The interface's counters now."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == interface:
                fields = numbers.split()
                return LinkCounters(sent_bytes=int(fields[8]), received_bytes=int(fields[0]))
        raise MachineError(
            f"the emulated network's host {self.name} has no interface {interface} any more; "
            "close it and make another one"
        )

    def close(self) -> None:
        """End the host with everything on it. The namespaces go when their last process has
        gone.
        """
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


def run_tool(argv: Sequence[str], text: str = "") -> str:
    """Run a system tool that takes `text`; `MachineError` with its own words when it fails."""
    try:
        told = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=_COMMAND_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"`{shlex.join(argv)}` could not be run: {error}") from error
    if told.returncode:
        raise MachineError(
            f"`{shlex.join(argv)}` failed: {told.stderr.strip()}; the emulated network needs real "
            "root and a kernel with veth and tbf"
        )
    return told.stdout
