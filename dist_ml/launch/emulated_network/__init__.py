"""The emulated network: several hosts on one machine, joined by links of a given rate.

    with EmulatedNetwork(hosts=4, rate="1gbit") as network:
        before = network.traffic()
        done = mpiexec.run(program, ranks=8, mpi="mpich", network=network, time_limit_seconds=60)
        crossed = [after - first for after, first in zip(network.traffic(), before)]
        # crossed: bytes on each host's link

        # without MPI: gloo, by torch.distributed's variables
        done = network.run_each(program, ranks=4, time_limit_seconds=60)
        network.set_rate("100mbit")

Each host is a set of namespaces (network, hostname, IPC, processes, mounts) with a /dev/shm, a
TMPDIR and an address of its own; MPI sees different nodes. The data network (eth0) is shaped in
both directions; a second one that is not shaped (mg0) carries what the launchers say to each other.
All of it hangs on processes that die with their owner, so a crash leaves nothing behind.

What it can't show: the hosts share this machine's cores and memory. Ranks and the kernel's network
stack compete for them, so compare variants in one run, look at the interface counters, and hold
times against the link's own bound.

It needs root, Linux, `ip` and `tc` (iproute2), `unshare` and `nsenter` (util-linux); `missing()`
tells in words what is not there.
"""

from dist_ml.launch.emulated_network.hosts import LinkCounters
from dist_ml.launch.emulated_network.network import EmulatedNetwork, missing

__all__ = ["EmulatedNetwork", "LinkCounters", "missing"]
