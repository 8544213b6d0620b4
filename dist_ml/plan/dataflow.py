"""What operators move, and what they have to: the bytes that each reads and writes, and of a run of
passes between two contractions the bytes that come from outside it and are needed after it.

Source: Ivanov, Dryden, Ben-Nun, Li, Hoefler, "Data movement is all you need", MLSys 2021, section
3: the classes of operators, and fusing what stands between contractions.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch.utils._pytree import tree_iter

from dist_ml.plan.operators import Memory, Operator, memory

Class: TypeAlias = Literal["contraction", "normalization", "element-wise"]

# Arithmetic operations an element of the largest tensor, of passes that torch's counter leaves out;
# all others have one, and those that only bring values somewhere none.
_NORMALIZATIONS = {
    "_softmax": 5,  # maximum, difference, exponential, sum, quotient
    "_softmax_backward_data": 4,  # product, sum, difference, product
    "native_layer_norm": 8,  # two sums, difference, square, and the four of the result
    "native_layer_norm_backward": 13,
}
_ONLY_MOVE = {"clone", "copy_", "_to_copy", "stack", "cat", "zeros_like", "fill_", "zero_"}
_VIEW = "_unsafe_view"  # which its declaration does not say
# In place, without reading what was there.
_ONLY_WRITE = {"bernoulli_", "copy_", "fill_", "zero_", "normal_", "uniform_", "random_"}


class Region(NamedTuple):
    """Where a tensor's elements are: views that begin at one place are taken to be the same."""

    storage: int
    offset: int
    storage_bytes: int


Regions: TypeAlias = Mapping[Region, int]  # bytes of elements


class Access(NamedTuple):
    """An operator, and what it reads and writes."""

    operator: Operator
    reads: Regions
    writes: Regions

    @property
    def kind(self) -> Class:
        if self.operator.flops:
            return "contraction"
        return "normalization" if self.operator.name in _NORMALIZATIONS else "element-wise"

    @property
    def flops(self) -> int:
        """torch's count for contractions; for passes what `_NORMALIZATIONS` says."""
        name = self.operator.name
        if self.operator.flops or name in _ONLY_MOVE:
            return self.operator.flops
        elements = max((*self.reads.values(), *self.writes.values()), default=0) // 4
        return _NORMALIZATIONS.get(name, 1) * elements

    @property
    def moved_bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


class Stretch(NamedTuple):
    """One contraction, or passes that follow one another; `bound_bytes`: what has to be moved where
    nothing between the passes is.
    """

    accesses: tuple[Access, ...]
    bound_bytes: int

    @property
    def kind(self) -> Class:
        """A stretch with a normalization in it is one."""
        kinds = {access.kind for access in self.accesses}
        found: tuple[Class, ...] = ("contraction", "normalization", "element-wise")
        return next(kind for kind in found if kind in kinds)

    @property
    def name(self) -> str:
        return " ".join(access.operator.name.strip("_") for access in self.accesses)

    @property
    def flops(self) -> int:
        return sum(access.flops for access in self.accesses)

    @property
    def moved_bytes(self) -> int:
        """Where each pass reads and writes memory."""
        return sum(access.moved_bytes for access in self.accesses)


def stretches(
    passes: Sequence[Sequence[Operator]], results: Collection[torch.Tensor]
) -> list[list[Stretch]]:
    """Of each pass (forward, backward); `results` are needed after all of them."""
    flat = [[_access(each) for each in operators if each.name != _VIEW] for operators in passes]
    steps = [step for steps in flat for step in steps]
    last_read: dict[int, int] = {}
    for place, step in enumerate(steps):
        last_read |= {region.storage: place for region in step.reads}
    last_read |= {region.storage: len(steps) for region in _regions(map(memory, results))}
    found, place = [], 0
    for own in flat:
        cut: list[Stretch] = []
        for is_product, group in groupby(own, lambda step: step.kind == "contraction"):
            for taken in [[step] for step in group] if is_product else [list(group)]:
                place += len(taken)
                cut.append(Stretch(tuple(taken), _bound(taken, last_read, place)))
        found.append(cut)
    return found


def _access(operator: Operator) -> Access:
    call = operator.call
    assert call is not None
    declared = call.function._schema.arguments
    changed = [
        memory(value)
        for argument, value in zip(declared, call.arguments, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    given = tree_iter((call.arguments, call.named))
    reads = _regions(memory(x) for x in given if isinstance(x, torch.Tensor))
    writes = _regions([*call.results, *changed])
    if operator.name in _ONLY_WRITE:
        for region in _regions(changed):
            reads.pop(region)
    return Access(operator, reads, writes)


def _bound(steps: Sequence[Access], last_read: Mapping[int, int], end: int) -> int:
    """Bytes read that no step before wrote, and bytes written that a step from `end` on reads, or
    no step at all: nobody knows what those are for.
    """
    outside: dict[Region, int] = {}
    written: dict[Region, int] = {}
    for step in steps:
        own = {region.storage for region in written}
        outside |= {r: n for r, n in step.reads.items() if r.storage not in own}
        written |= step.writes
    needed = {r: n for r, n in written.items() if last_read.get(r.storage, end) >= end}
    return _distinct(outside) + _distinct(needed)


def _distinct(regions: Regions) -> int:
    """Bytes of regions of which some may be parts of others of their storage."""
    by_storage: dict[tuple[int, int], int] = {}
    for (storage, _, whole), num_bytes in regions.items():
        by_storage[storage, whole] = by_storage.get((storage, whole), 0) + num_bytes
    return sum(min(whole, num_bytes) for (_, whole), num_bytes in by_storage.items())


def _regions(places: Iterable[Memory]) -> dict[Region, int]:
    """Bytes of each region that these take."""
    found: dict[Region, int] = {}
    for storage, offset, num_bytes in places:
        region = Region(int(storage._cdata), offset, storage.nbytes())
        found[region] = max(num_bytes, found.get(region, 0))
    return found
