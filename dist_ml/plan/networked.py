"""A machine of several nodes: what its ranks take to compute, and to reach each other."""

from collections.abc import Mapping
from dataclasses import dataclass

from dist_ml.measure.cost_model import Link
from dist_ml.plan.machine import Curve, Processor
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
        room = max(self.cores, self.processor.ranks * self.processor.threads)
        return max(1.0, working / room)

    def crosses_nodes(self, axis: str, sizes: Mapping[str, int]) -> bool:
        """Do neighbours along an axis lie on different nodes? The operator axis is innermost, then
        the pipeline's.
        """
        inner = {"operator": 1, "pipeline": sizes["operator"]}
        start = inner.get(axis, sizes["operator"] * sizes["pipeline"])
        return start * sizes[axis] > self.ranks_per_node

    def collective(self, one: Collective, axis: str, sizes: Mapping[str, int]) -> float:
        return _HALF[one.kind] * self._allreduce(
            self.processor.collectives, one.num_bytes, one.ranks, self.crosses_nodes(axis, sizes)
        )

    def gradient_sum(self, num_bytes: float, sizes: Mapping[str, int]) -> float:
        """An allreduce over the data axis by the best algorithm here."""
        crosses = self.crosses_nodes("data", sizes)
        return self._allreduce(self.processor.allreduces, num_bytes, sizes["data"], crosses)

    def message(self, num_bytes: float, sizes: Mapping[str, int]) -> float:
        if self.network is not None and self.crosses_nodes("pipeline", sizes):
            return self.network.seconds(1, num_bytes)
        curve = self.processor.message
        return curve.at(num_bytes) if curve is not None else 0.0

    def _allreduce(
        self, curves: Mapping[int, Curve], num_bytes: float, ranks: int, crosses: bool
    ) -> float:
        """On one node as measured, of other numbers of ranks in proportion to their words; between
        nodes a ring.
        """
        share = (ranks - 1) / ranks
        if self.network is not None and crosses:
            return self.network.seconds(2 * (ranks - 1), 2 * share * num_bytes)
        if not curves:
            return 0.0
        measured = min(curves, key=lambda other: (abs(other - ranks), other))
        return curves[measured].at(num_bytes) * share / ((measured - 1) / measured)
