"""Links between nodes by name: nominal rates, and latencies that are usual for them."""

from dist_ml.config.names import require_one_of
from dist_ml.measure.cost_model import Link

LINKS: dict[str, Link] = {
    "100mbit": Link(100e-6, 100e6 / 8),
    "1gbit": Link(50e-6, 1e9 / 8),
    "10gbit": Link(20e-6, 10e9 / 8),
    "100gbit": Link(2e-6, 100e9 / 8),
    "400gbit": Link(2e-6, 400e9 / 8),
}


def link_named(name: str) -> Link:
    require_one_of("network", name, LINKS)
    return LINKS[name]
