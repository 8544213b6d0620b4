"""The compiled loops of `node_staging.py`: whole collectives of vectors in ordinary memory, chunk
by chunk through memory that all ranks of a node see.

Each row of `copies`, a rank's, has room for two chunks; chunk e, counted over all calls, lies in
half e % 2. `flags` as in `SharedBuffer`: e is written to a rank's first flag when its part of chunk
e lies there, and to its second when it needs nothing of the others' any more, so that chunk e + 2
may take its place.

A loop goes on until it is over, or until it has looked `spins` times in vain; `progress` says where
it goes on from. Importing this module imports numba.
"""

from typing import Any

from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

from dist_ml.comm.allreduce.compiled_loops import LINE_BYTES, reached, reduce, signal
from dist_ml.compiled import compiled_loop

cgutils: Any = untyped_cgutils


def _copy_elements(
    _context: Any, target: Any, _place: Any, source: Any, _start: Any, _count: Any
) -> Any:
    """target[place : place + count] = source[start : start + count], of one dtype: the C library's
    memcpy, which LLVM's loops don't come up to.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = []
        for array, index in ((0, 1), (2, 3)):
            kind = signature.args[array]
            struct = cgutils.create_struct_proxy(kind)(context, builder, arguments[array])
            pointers.append(builder.gep(struct.data, [arguments[index]]))
        item_bytes = context.get_abi_sizeof(context.get_data_type(target.dtype))
        cgutils.raw_memcpy(builder, *pointers, arguments[4], item_bytes)
        return context.get_dummy_value()

    numbers = types.int64, types.int64, types.int64
    return types.void(target, numbers[0], source, numbers[1], numbers[2]), generate


_copy: Any = intrinsic(_copy_elements)


@compiled_loop()
def _add(target: Any, source: Any) -> None:
    for i in range(len(target)):
        target[i] += source[i]


@compiled_loop()
def _sum(target: Any, own: Any, copies: Any, place: int, rank: int) -> None:
    """What all ranks have for `target`: `own`, and the others' at `place` of their rows."""
    count = len(target)
    for other in range(len(copies)):
        source = own[:count] if other == rank else copies[other, place : place + count]
        if other == 0:
            _copy(target, 0, source, 0, count)
        else:
            _add(target, source)


@compiled_loop()
def _free_for(flags: Any, size: int, chunk: int) -> bool:
    """Whether what lay where `chunk` will lie is needed by nobody."""
    return bool(reached(flags, size, size, chunk - 2, 0))


@compiled_loop()
def allreduce(
    progress: Any,
    x: Any,
    copies: Any,
    rows: Any,
    flags: Any,
    rank: int,
    first: int,
    divisor: Any,
    spins: int,
) -> bool:
    """Sum `x` over the ranks, in place: a chunk is put in, each rank reduces its share of it into
    all rows, and it is taken out, two chunks under way at a time.
    """
    put, reduced, taken = progress[0], progress[1], progress[2]
    size, words, left = len(rows), copies.shape[1] // 2, spins
    number = (x.size + words - 1) // words
    lanes = LINE_BYTES // copies.itemsize
    share = ((words + size - 1) // size + lanes - 1) // lanes * lanes
    while taken < number and left >= 0:
        left -= 1
        if put < number and put < taken + 2 and _free_for(flags, size, first + put):
            count = min(words, x.size - put * words)
            _copy(copies[rank], (first + put) % 2 * words, x, put * words, count)
            signal(flags, rank, first + put)
            put, left = put + 1, spins
        if reduced < put and reached(flags, 0, size, first + reduced, 0):
            count, half = min(words, x.size - reduced * words), (first + reduced) % 2 * words
            start, stop = min(count, rank * share), min(count, (rank + 1) * share)
            reduce(copies, rows, half + start, half + stop, divisor, -1)
            signal(flags, size + rank, first + reduced)
            reduced, left = reduced + 1, spins
        if taken < reduced and reached(flags, size, size, first + taken, 0):
            count = min(words, x.size - taken * words)
            _copy(x, taken * words, copies[rank], (first + taken) % 2 * words, count)
            taken, left = taken + 1, spins
    progress[0], progress[1], progress[2] = put, reduced, taken
    return bool(taken == number)


@compiled_loop()
def allgather(
    progress: Any,
    whole: Any,
    copies: Any,
    flags: Any,
    rank: int,
    first: int,
    spins: int,
) -> bool:
    """All ranks' equal parts of `whole`, of which this rank's is there."""
    put, taken = progress[0], progress[2]
    size, words, left = len(copies), copies.shape[1] // 2, spins
    part = whole.size // size
    number = (part + words - 1) // words
    while taken < number and left >= 0:
        left -= 1
        if put < number and _free_for(flags, size, first + put):
            count = min(words, part - put * words)
            place = (first + put) % 2 * words
            _copy(copies[rank], place, whole, rank * part + put * words, count)
            signal(flags, rank, first + put)
            put, left = put + 1, spins
        if taken < put and reached(flags, 0, size, first + taken, 0):
            count, half = min(words, part - taken * words), (first + taken) % 2 * words
            for other in range(size):
                if other != rank:
                    _copy(whole, other * part + taken * words, copies[other], half, count)
            signal(flags, size + rank, first + taken)
            taken, left = taken + 1, spins
    progress[0], progress[2] = put, taken
    return bool(taken == number)


@compiled_loop()
def reduce_scatter(
    progress: Any,
    x: Any,
    own: Any,
    copies: Any,
    flags: Any,
    rank: int,
    first: int,
    divisor: Any,
    spins: int,
) -> bool:
    """The ranks' sum of this rank's part of `x` into `own`, added in the order of the ranks: a
    chunk is as much of each rank's part as has room.
    """
    put, taken = progress[0], progress[2]
    size, part, left = len(copies), own.size, spins
    room = copies.shape[1] // 2
    words = room // size
    number = (part + words - 1) // words
    while taken < number and left >= 0:
        left -= 1
        if put < number and _free_for(flags, size, first + put):
            count, half = min(words, part - put * words), (first + put) % 2 * room
            for other in range(size):
                if other != rank:
                    start = other * part + put * words
                    _copy(copies[rank], half + other * words, x, start, count)
            signal(flags, rank, first + put)
            put, left = put + 1, spins
        if taken < put and reached(flags, 0, size, first + taken, 0):
            start = taken * words
            count, half = min(words, part - start), (first + taken) % 2 * room
            _sum(
                own[start : start + count],
                x[rank * part + start :],
                copies,
                half + rank * words,
                rank,
            )
            if divisor != 1:
                own[start : start + count] /= divisor
            signal(flags, size + rank, first + taken)
            taken, left = taken + 1, spins
    progress[0], progress[2] = put, taken
    return bool(taken == number)
