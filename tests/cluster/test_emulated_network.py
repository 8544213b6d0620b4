"""The emulated network: separate hosts for both MPIs, links of the stated rate, nothing left when
it closes.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_ml.launch import mpiexec
from dist_ml.launch.emulated_network import EmulatedNetwork, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

MEGABYTES = 4
PLACES = """
from dist_ml.launch import stacks; stacks.arm()
from dist_ml.launch.mpi_installation import select_library; select_library()
from mpi4py import MPI
import socket
comm = MPI.COMM_WORLD
node = comm.Split_type(MPI.COMM_TYPE_SHARED)
places = comm.gather((comm.rank, socket.gethostname(), node.size), root=0)
if comm.rank == 0: print(*sorted(places), sep="\\n")
"""
TRANSFER = f"""
from dist_ml.launch import stacks; stacks.arm()
from dist_ml.launch.mpi_installation import select_library; select_library()
from mpi4py import MPI
import numpy as np, time
comm = MPI.COMM_WORLD; buffer = np.ones({MEGABYTES} * 1_000_000, dtype=np.uint8)
for _ in range(3):
    comm.Barrier(); start = time.perf_counter()
    comm.Send(buffer, 1) if comm.rank == 0 else comm.Recv(buffer, 0)
    comm.Barrier(); seconds = time.perf_counter() - start
if comm.rank == 0: print(seconds)
"""
GLOO = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(1000) * (dist.get_rank() + 1)
dist.all_reduce(x)
print(os.uname().nodename, x[0].item())
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_ranks_fill_hosts_that_mpi_takes_for_nodes(flavour: str) -> None:
    with EmulatedNetwork(hosts=3) as network:
        done = mpiexec.run(
            python(PLACES), 5, flavour, network=network, capture=True, time_limit_seconds=60
        )
    assert done.returncode == 0, done
    assert done.stdout.split("\n")[:5] == [
        "(0, 'h0', 2)",
        "(1, 'h0', 2)",
        "(2, 'h1', 2)",
        "(3, 'h1', 2)",
        "(4, 'h2', 1)",
    ]


def test_bytes_cross_the_link_at_its_rate(flavour: str) -> None:
    with EmulatedNetwork(hosts=2, rate="100mbit") as network:
        before = network.traffic()
        done = mpiexec.run(
            python(TRANSFER), 2, flavour, network=network, capture=True, time_limit_seconds=60
        )
        crossed = network.traffic()[0] - before[0]
    assert done.returncode == 0, done
    assert 3 * MEGABYTES * 1e6 <= crossed.sent_bytes <= 3.5 * MEGABYTES * 1e6
    line_seconds = MEGABYTES * 8 / 100
    assert (
        0.99 * line_seconds < float(done.stdout) < 2 * line_seconds
    )  # this machine may be busy; never faster than the line


def test_gloo_sums_over_the_hosts() -> None:
    with EmulatedNetwork(hosts=2) as network:
        done = network.run_each(python(GLOO), ranks=3, time_limit_seconds=60)
    assert [each.stdout for each in done] == ["h0 6.0\n", "h0 6.0\n", "h1 6.0\n"], done


def test_hosts_end_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    owner = (
        "import sys, time; from pathlib import Path; from dist_ml.launch.emulated_network import "
        "EmulatedNetwork\n"
        "with EmulatedNetwork(hosts=2) as network:\n"
        "    pids = [host.pid for host in [network.switch, *network.hosts]]\n"
        f"    Path({str(pids)!r}).write_text(' '.join(map(str, pids)) + '\\n')\n"
        "    time.sleep(100)"
    )
    process = subprocess.Popen(python(owner))
    deadline = time.monotonic() + 20
    while not (pids.exists() and pids.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = [int(pid) for pid in pids.read_text().split()]
    assert len(held) == 3
    while any(namespace(pid) for pid in held):
        assert time.monotonic() < deadline, f"still there: {held}"
        time.sleep(0.02)


def namespace(pid: int) -> str:
    """The network namespace that a process holds; empty when it is gone, or dead and not yet
    buried.
    """
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""
