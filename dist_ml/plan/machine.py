"""How fast this machine computes: seconds of operators, measured once and read by size.

A matrix product is interpolated in the logarithms of its three sizes between measured ones, each
way that its factors can lie in memory apart. Any other operator has a curve of seconds over its
size: floating-point operations where it has some (convolutions, fused attention), else bytes. An
operator that was never measured moves its bytes as addition does.

All of it is known twice: with what is read in the cache, and in memory. Which of them holds, the
bytes say that a step goes through before it comes back to the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from dist_ml.plan.curves import Curve, Products
from dist_ml.plan.operators import Operator

LAYOUTS = ("NT", "NN", "TN")  # forward, backward to the input, and to the weight
_UNKNOWN = "add"  # moves bytes, and little else


class Rates(NamedTuple):
    """Seconds of what one rank computes, with its operands in one place."""

    products: dict[str, Products]  # by layout
    curves: dict[str, Curve]
    optimizers: dict[str, Curve]  # over parameters

    def operator(self, operator: Operator) -> float:
        if operator.product is not None:
            table = self.products.get(operator.layout, self.products["NN"])
            return operator.times * table.at(*operator.product)
        curve = self.curves.get(operator.name, self.curves[_UNKNOWN])
        uses_flops = operator.flops and operator.name in self.curves
        return curve.at(operator.flops if uses_flops else operator.num_bytes)


class Constants(NamedTuple):
    """What steps take beside their operators, in Python and autograd; fitted to whole steps."""

    operator_seconds: float = 0.0  # an operator
    pass_seconds: float = 0.0  # a micro-batch through a stage, forward and backward
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Processor:
    """One rank's share of the processor, with `computing` of them at work on the node at once;
    `ranks` (more where they outnumber cores) exchanged with each other.
    """

    ranks: int
    computing: int
    threads: int
    warm: Rates  # operands in the cache
    cold: Rates  # operands in memory
    own_cache_bytes: int  # of a core
    cache_bytes: int  # of all ranks of a node
    loading: dict[str, Curve] = field(default_factory=dict)  # of a batch by data set, over bytes
    constants: Constants = field(default_factory=Constants)
    allreduces: dict[int, Curve] = field(default_factory=dict)  # auto's, by ranks, over bytes
    collectives: dict[int, Curve] = field(default_factory=dict)  # the MPI's allreduce, likewise
    message: Curve | None = None  # over bytes, from rank to rank
    base_bytes: int = 0  # resident, of a process that has trained next to nothing

    def seconds(self, operators: Sequence[Operator], in_memory: float) -> float:
        """`in_memory`: the share of their operands that isn't in the cache."""
        warm, cold = (sum(map(rates.operator, operators)) for rates in (self.warm, self.cold))
        own = self.constants.operator_seconds * len(operators)
        return (1 - in_memory) * warm + in_memory * cold + own

    def update(self, name: str, num_parameters: float, in_memory: float) -> float:
        """Of an optimizer."""
        warm, cold = (rates.optimizers[name].at(num_parameters) for rates in (self.warm, self.cold))
        return (1 - in_memory) * warm + in_memory * cold

    def load(self, dataset: str, num_bytes: float) -> float:
        """Of a batch; a data set that wasn't measured is copied, as packaged digits are."""
        curve = self.loading.get(dataset, self.loading.get("digits"))
        return curve.at(num_bytes) if curve is not None else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            **asdict(self),
            "warm": _rates_mapping(self.warm),
            "cold": _rates_mapping(self.cold),
            "constants": self.constants._asdict(),
            "allreduces": {str(ranks): curve for ranks, curve in self.allreduces.items()},
            "collectives": {str(ranks): curve for ranks, curve in self.collectives.items()},
        }

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> "Processor":
        """`ValueError`, `KeyError` or `TypeError` for what isn't one."""
        numbers = ("ranks", "computing", "threads", "own_cache_bytes", "cache_bytes", "base_bytes")
        message = mapping["message"]
        return Processor(
            **{name: int(mapping[name]) for name in numbers},
            warm=_rates(mapping["warm"]),
            cold=_rates(mapping["cold"]),
            loading=_curves(mapping["loading"]),
            constants=Constants(**{k: float(v) for k, v in mapping["constants"].items()}),
            allreduces={int(n): _curve(pair) for n, pair in mapping["allreduces"].items()},
            collectives={int(n): _curve(pair) for n, pair in mapping["collectives"].items()},
            message=None if message is None else _curve(message),
        )


def _rates_mapping(rates: Rates) -> dict[str, Any]:
    products = {
        layout: [[*sizes, seconds] for sizes, seconds in table.seconds.items()]
        for layout, table in rates.products.items()
    }
    return {"products": products, "curves": rates.curves, "optimizers": rates.optimizers}


def _rates(mapping: Mapping[str, Any]) -> Rates:
    products = {
        layout: Products({(int(m), int(n), int(k)): float(seconds) for m, n, k, seconds in rows})
        for layout, rows in mapping["products"].items()
    }
    return Rates(products, _curves(mapping["curves"]), _curves(mapping["optimizers"]))


def _curves(named: Mapping[str, Any]) -> dict[str, Curve]:
    return {name: _curve(pair) for name, pair in named.items()}


def _curve(pair: Sequence[Sequence[float]]) -> Curve:
    sizes, seconds = (tuple(map(float, values)) for values in pair)
    if len(sizes) != len(seconds) or not sizes or min(seconds) <= 0:
        raise ValueError(pair)
    return Curve(sizes, seconds)
