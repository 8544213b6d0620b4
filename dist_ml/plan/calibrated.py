"""What `dist-ml calibrate` found on this kind of machine, kept in the user's cache: one `Processor`
for each number of ranks that computed on a node at once.
"""

import hashlib
import os

from dist_ml.errors import MachineError
from dist_ml.kernels.tuner import machine as processor_key
from dist_ml.measure import cache
from dist_ml.plan.machine import Processor

VERSION = 2  # of the form


def store(processor: Processor) -> None:
    cache.merge(_name(processor.threads), str(processor.ranks), processor.to_mapping())


def load(ranks_per_node: int, threads: int) -> Processor:
    """The one with the most ranks up to `ranks_per_node`, else the fewest. `MachineError` where
    nothing was calibrated for so many threads.
    """
    kept = cache.load(_name(threads)) or {}
    found = {}
    for ranks, mapping in kept.items():
        try:
            found[int(ranks)] = Processor.from_mapping(mapping)
        except (KeyError, TypeError, ValueError):  # of another form
            continue
    if not found:
        raise MachineError(
            f"this machine is not calibrated for {threads} thread{'s' * (threads > 1)} a rank; run "
            f"dist-ml launch -n {min(ranks_per_node, os.cpu_count() or 1)} calibrate, once"
        )
    below = [ranks for ranks in found if ranks <= ranks_per_node]
    return found[max(below) if below else min(found)]


def _name(threads: int) -> str:
    key = f"{VERSION} {processor_key(threads)} {os.cpu_count()} cores"
    return "plan-" + hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
