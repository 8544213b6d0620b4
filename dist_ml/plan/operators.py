"""What a piece of a model computes: the operators that torch would run, recorded from the real code
on tensors without data.

Shapes, dtypes and choices of implementation are those of the processor (`FakeTensorMode`), so that
fused attention and mixed precision count as what they are; nothing is computed or allocated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import flop_registry


class Operator(NamedTuple):
    """One call of an operator that isn't a view.

    `num_bytes`: of its arguments and results, each once; `product`: rows, columns and inner size of
    each of `times` matrix products, where it is that, and how its factors lie, T for transposed;
    `call` does it again on real tensors.
    """

    name: str
    flops: int
    num_bytes: int
    product: tuple[int, int, int] | None = None
    times: int = 1
    call: "Call | None" = None
    layout: str = "NN"


class Call(NamedTuple):
    """An operator, what it was called with and where its results lie; tensors have shapes, but no
    data.
    """

    function: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: "tuple[Memory, ...]" = ()

    def on_real_tensors(self, times: int) -> list[Callable[[], Any]]:
        """The call, so many times, each on tensors of its own, of small random numbers, and of
        zeros where they are indices.
        """
        first = tree_map_only(torch.Tensor, _real, (self.arguments, self.named))
        copies = (tree_map_only(torch.Tensor, _copy, first) for _ in range(times - 1))
        return [partial(self.function, *args, **named) for args, named in (first, *copies)]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """With numbers in it; the elements of expanded ones are one."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    flat = torch.zeros(last + 1 if tensor.numel() else 0, dtype=tensor.dtype)
    if flat.is_floating_point():
        flat.normal_(std=0.1)
    return flat.as_strided(tensor.shape, tensor.stride())


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """As it lies in memory."""
    flat = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,))
    return flat.clone().as_strided(tensor.shape, tensor.stride())


class Memory(NamedTuple):
    """Where a tensor's elements lie: bytes of them that there are, from `offset` on. It holds the
    storage, so that no other tensor comes to lie there.
    """

    storage: torch.UntypedStorage
    offset: int
    num_bytes: int


def memory(tensor: torch.Tensor) -> Memory:
    """Of a tensor; an expanded one has fewer elements in memory than it shows."""
    storage = tensor.untyped_storage()
    num_bytes = min(tensor.numel() * tensor.element_size(), storage.nbytes())
    return Memory(storage, int(tensor.storage_offset()), num_bytes)


class Record(NamedTuple):
    """`operators` in order; `kept_bytes`: what autograd kept of their arguments and results,
    parameters not counted.
    """

    operators: list[Operator]
    kept: dict[int, int]  # bytes by storage

    @property
    def kept_bytes(self) -> int:
        return sum(self.kept.values())


@contextmanager
def without_data() -> Iterator[None]:
    """Within the block tensors are made without data."""
    with _mode():
        yield


@cache
def _mode() -> FakeTensorMode:
    """One for all: models keep tables that they made in an earlier block."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def recorded(parameters: list[torch.Tensor]) -> Iterator[Record]:
    """What runs within the block, which is inside `without_data`."""
    record = Record([], {})
    held = {_storage(parameter) for parameter in parameters}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = _storage(tensor)
        if storage not in held:
            record.kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with _Recorder(record.operators), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield record


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, operators: list[Operator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operators = operators

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        result = function(*args, **named)
        if function.namespace == "aten" and not _is_view(function) and not _only_makes(function):
            self._operators.append(_operator(function, args, named, result))
        return result


def _operator(function: Any, arguments: tuple[Any, ...], named: Any, result: Any) -> Operator:
    name = _name(function, arguments)
    count = flop_registry.get(function._overloadpacket)
    flops = int(count(*arguments, **named, out_val=result)) if count else 0
    num_bytes = sum(
        tensor.numel() * tensor.element_size()
        for tensor in tree_iter((arguments, named, result))
        if isinstance(tensor, torch.Tensor)
    )
    # Not the results themselves: autograd copies gradients that somebody else holds.
    places = (memory(x) for x in tree_iter(result) if isinstance(x, torch.Tensor))
    call = Call(function, arguments, named, tuple(places))
    if name not in _FACTORS:
        return Operator(name, flops, num_bytes, call=call)
    left, right = (arguments[place] for place in _FACTORS[name])
    sizes = left.shape[-2], right.shape[-1], left.shape[-1]
    times = left.shape[0] if left.ndim == 3 else 1
    return Operator(name, flops, num_bytes, sizes, times, call, _lies(left) + _lies(right))


# Where the factors of a matrix product are among the arguments.
_FACTORS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}


def _name(function: Any, arguments: tuple[Any, ...]) -> str:
    """Its own where the numbers are complex, which cost several times as much."""
    tensors = (each for each in arguments if isinstance(each, torch.Tensor))
    complex_ = any(tensor.is_complex() for tensor in tensors)
    return f"{function._opname} of complex numbers" if complex_ else str(function._opname)


def _lies(matrix: torch.Tensor) -> str:
    """Row by row, or transposed."""
    return "N" if matrix.stride(-1) == 1 else "T"


def _is_view(function: Any) -> bool:
    returns = function._schema.returns
    alias = returns[0].alias_info if returns else None
    return alias is not None and not alias.is_write


def _only_makes(function: Any) -> bool:
    """Memory, without touching it."""
    return str(function._opname).startswith(("empty", "new_empty", "detach"))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
