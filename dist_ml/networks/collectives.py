"""What an allreduce takes on a network: latency and bandwidth terms of each algorithm.

With N accelerators of k links (`link`: latency of a message, bytes a second of one link) and n
bytes:

    ring                      2 (N-1) latency + 2 (N-1)/N n / (k share bandwidth)
    rows_and_columns          4 sqrt(N) latency, twice the bandwidth term: half of the links each
    tree                      2 levels latency + 2 n / bandwidth of one link
    in_network                2 levels latency + n / bandwidth of one link: switches reduce

On tori and HammingMeshes two edge-disjoint rings over all accelerators, both ways round, use all
four links. In the network each accelerator sends its n bytes once, and gets the sum once, at the
same time.

Sources: Hoefler et al., SC 2022, section V; De Sensi et al., "Flare: flexible in-network
allreduce", SC 2021, section 2.
"""

import math
from collections.abc import Callable

from dist_ml.measure.cost_model import Link
from dist_ml.networks.network import Network


def ring(network: Network, link: Link, num_bytes: float) -> float:
    n = network.num_accelerators
    rate = link.bytes_per_second * network.num_links * float(network.allreduce_share)
    return 2 * (n - 1) * link.latency_seconds + 2 * (n - 1) / n * num_bytes / rate


def rows_and_columns(network: Network, link: Link, num_bytes: float) -> float:
    """Reduce-scatter along rows, allreduce along columns, allgather along rows, each on the links
    of its dimension, in a grid that is as square as can be.
    """
    n, rate = network.num_accelerators, link.bytes_per_second * network.num_links / 2
    rows = next(side for side in range(math.isqrt(n), 0, -1) if n % side == 0)
    columns = n // rows
    messages = 2 * (columns - 1) + 2 * (rows - 1)
    moved = 2 * (columns - 1) / columns * num_bytes + 2 * (rows - 1) / rows * num_bytes / columns
    return messages * link.latency_seconds + moved / rate


def tree(network: Network, link: Link, num_bytes: float) -> float:
    return 2 * _levels(network) * link.latency_seconds + 2 * num_bytes / link.bytes_per_second


def in_network(network: Network, link: Link, num_bytes: float) -> float:
    return network.diameter * link.latency_seconds + num_bytes / link.bytes_per_second


def _levels(network: Network) -> int:
    return math.ceil(math.log2(network.num_accelerators))


# Seconds of an allreduce of so many bytes by each algorithm.
ALLREDUCES: dict[str, Callable[[Network, Link, float], float]] = {
    "ring": ring,
    "rows_and_columns": rows_and_columns,
    "tree": tree,
}
