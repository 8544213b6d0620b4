"""A machine of several nodes: what its ranks take to compute, and to reach each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dist_ml.measure.cost_model import Link
from dist_ml.plan.curves import Curve
from dist_ml.plan.machine import Processor
from dist_ml.plan.planned_ranks import Collective

_HALF = {"allreduce": 1.0, "allgather": 0.5, "reduce_scatter": 0.5}


@dataclass(frozen=True)
class Machine:
    """`processor`: as calibrated; `cores` of a node; `ranks_per_node`, and the `network` between
    nodes, where there are several.
    """

    processor: Processor
    cores: int
    ranks_per_node: int
    network: Link | None = None

    def sharing(self, num_ranks: int) -> float:
        """How many times as long a rank computes because ranks outnumber cores: over those that
        computed at once when it was measured.
        """
        working = min(num_ranks, self.ranks_per_node) * self.processor.threads
        room = max(self.cores, self.processor.computing * self.processor.threads)
        return max(1.0, working / room)

    def in_memory(self, num_bytes: float, num_ranks: int) -> float:
        """The share of its operands that a pass doesn't find in its core's own cache, where each
        rank goes through so many bytes: none up to that cache, all beyond what it has of the
        cache of all, and between them along the logarithm, as from cache to cache.
        """
        own = self.processor.own_cache_bytes
        of_all = self.processor.cache_bytes / min(num_ranks, self.ranks_per_node)
        if num_bytes <= own or of_all <= own:
            return float(num_bytes > own)
        return min(1.0, math.log(num_bytes / own) / math.log(of_all / own))

    def crosses_nodes(self, axis: str, sizes: Mapping[str, int]) -> bool:
        """Do neighbours along an axis lie on different nodes?"""
        return _inside(axis, sizes) * sizes[axis] > self.ranks_per_node

    def collective(self, one: Collective, axis: str, sizes: Mapping[str, int]) -> float:
        if self.network is not None and self.crosses_nodes(axis, sizes):
            return _HALF[one.kind] * self._ring(one.num_bytes, one.ranks, axis, sizes)
        curves = self.processor.collectives
        return _HALF[one.kind] * _on_a_node(curves, one.num_bytes, one.ranks)

    def gradient_sum(
        self, num_bytes: float, sizes: Mapping[str, int], name: str = "auto", copies: int = 1
    ) -> float:
        """An allreduce over the data axis, and over the `copies` that each pipeline has: the MPI's
        (`native`), or the best algorithm here.
        """
        ranks = sizes["data"] * copies
        if self.network is not None and self.sums_between_nodes(sizes, copies):
            return self._ring(num_bytes, ranks, "data", sizes)
        curves = self.processor.collectives if name == "native" else self.processor.allreduces
        return _on_a_node(curves, num_bytes, ranks)

    def agreement(self, num_bytes: float, sizes: Mapping[str, int]) -> float:
        """An allreduce over a model's ranks, those of the pipeline and the operator axis."""
        ranks = sizes["pipeline"] * sizes["operator"]
        if self.network is not None and self.crosses_nodes("pipeline", sizes):
            return self._ring(num_bytes, ranks, "pipeline", sizes)
        return _on_a_node(self.processor.collectives, num_bytes, ranks)

    def sums_between_nodes(self, sizes: Mapping[str, int], copies: int = 1) -> bool:
        """Are the ranks that hold the same gradients on several nodes?"""
        along_pipeline = copies > 1 and self.crosses_nodes("pipeline", sizes)
        return along_pipeline or (sizes["data"] > 1 and self.crosses_nodes("data", sizes))

    def message(self, num_bytes: float, sizes: Mapping[str, int]) -> float:
        if self.network is not None and self.crosses_nodes("pipeline", sizes):
            return self.network.seconds(1, self._sent_at_once("pipeline", sizes) * num_bytes)
        curve = self.processor.message
        return curve.at(num_bytes) if curve is not None else 0.0

    def _ring(self, num_bytes: float, ranks: int, axis: str, sizes: Mapping[str, int]) -> float:
        assert self.network is not None
        words = 2 * (ranks - 1) / ranks * num_bytes
        return self.network.seconds(2 * (ranks - 1), self._sent_at_once(axis, sizes) * words)

    def _sent_at_once(self, axis: str, sizes: Mapping[str, int]) -> int:
        """Ranks of a node that send to another one along an axis at a time: they share its link."""
        return min(self.ranks_per_node, _inside(axis, sizes))


def _inside(axis: str, sizes: Mapping[str, int]) -> int:
    """Ranks between neighbours along an axis: the operator's is innermost, then the pipeline's."""
    inner = {"operator": 1, "pipeline": sizes["operator"]}
    return inner.get(axis, sizes["operator"] * sizes["pipeline"])


def _on_a_node(curves: Mapping[int, Curve], num_bytes: float, ranks: int) -> float:
    """An allreduce as measured, of other numbers of ranks in proportion to their words."""
    if not curves:
        return 0.0
    measured = min(curves, key=lambda other: (abs(other - ranks), other))
    share = (ranks - 1) / ranks
    return curves[measured].at(num_bytes) * share / ((measured - 1) / measured)
