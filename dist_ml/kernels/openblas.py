"""OpenBLAS by kernel set: private copies of the library that numpy brings, each with the
instructions it is told to use.

OpenBLAS chooses its kernels for the processor once, while it is loaded, and doesn't know every
processor (here: it takes AVX2 kernels on some that have AVX-512). `OPENBLAS_CORETYPE` overrides
that, but numpy has loaded it by the time a user's program could set the variable. So each kernel
set is a second copy of the same file, loaded from memory with the variable set for that moment.
Copies share nothing: numpy keeps its own, no environment needs preparing, and several can be
compared in one process.
"""

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from dist_ml.errors import MachineError
from dist_ml.kernels import processor

# Which instructions (as /proc/cpuinfo spells them) each kernel set needs. OpenBLAS itself doesn't
# check a set that it is told to use.
KERNEL_SETS: dict[str, frozenset[str]] = {
    "haswell": frozenset({"avx2", "fma"}),
    "skylakex": frozenset({"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}),
    "cooperlake": frozenset(
        {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd", "avx512_bf16"}
    ),
}
_CORETYPES = {"haswell": "Haswell", "skylakex": "SkylakeX", "cooperlake": "Cooperlake"}
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
# Its threads otherwise spin for about 20 ms after each product (2^26 cycles), on cores that torch's
# threads then want: 2^4 here.
_SHORTEST_SPIN = "4"
_loading = threading.Lock()


class OpenBlas:
    """One loaded copy. `gemm` works on raw addresses; `threads` is how many it uses from then
    on.
    """

    def __init__(self, path: str, suffix: str, prefix: str) -> None:
        self._library = ctypes.CDLL(path)
        self._gemms = {}
        for letter, real in (("s", ctypes.c_float), ("d", ctypes.c_double)):
            function = getattr(self._library, f"{prefix}cblas_{letter}gemm{suffix}")
            integer, address = ctypes.c_int64 if suffix else ctypes.c_int, ctypes.c_void_p
            flag = ctypes.c_int
            function.argtypes = [
                *(flag,) * 3, *(integer,) * 3, real,
                address, integer, address, integer, real, address, integer,
            ]  # fmt: skip
            function.restype = None
            self._gemms[letter] = function
        self._set_threads = getattr(self._library, f"{prefix}openblas_set_num_threads{suffix}")
        corename = getattr(self._library, f"{prefix}openblas_get_corename{suffix}")
        corename.restype = ctypes.c_char_p
        self.core: str = corename().decode()
        self._threads = 0

    def use_threads(self, threads: int) -> None:
        if threads != self._threads:
            self._set_threads(ctypes.c_int(threads))
            self._threads = threads

    def gemm(
        self, letter: str, transposed: tuple[bool, bool], mnk: tuple[int, int, int],
        alpha: float, beta: float,
        a: tuple[int, int], b: tuple[int, int], c: tuple[int, int],
    ) -> None:  # fmt: skip
        """Row-major C = alpha op(A) op(B) + beta C; a matrix is (address, elements from row to
        row).
        """
        flags = [_TRANSPOSED if flag else _PLAIN for flag in transposed]
        self._gemms[letter](_ROW_MAJOR, *flags, *mnk, alpha, *a, *b, beta, *c)


@lru_cache(maxsize=1)
def available() -> tuple[str, ...]:
    """The kernel sets that this processor can run, where numpy brings an OpenBLAS that can be
    copied.
    """
    if numpy_library() is None or not Path("/proc/self/fd").exists():
        return ()
    flags = processor.flags()
    return tuple(name for name, needed in KERNEL_SETS.items() if needed <= flags)


@cache
def load(kernel_set: str) -> OpenBlas:
    """A private copy with the given kernel set; `MachineError` where this processor or numpy has
    none.
    """
    library = numpy_library()
    if kernel_set not in available() or library is None:
        raise MachineError(
            f"OpenBLAS kernel set {kernel_set} can't run here; there are "
            f"{', '.join(available()) or 'none'}: choose one, or torch"
        )
    settings = {
        "OPENBLAS_CORETYPE": _CORETYPES[kernel_set],
        "OPENBLAS_THREAD_TIMEOUT": _SHORTEST_SPIN,
    }
    with _loading, _variables(settings):
        # The descriptor stays open: the dynamic loader tells libraries apart by path, and the path
        # is the descriptor's number.
        copy = os.memfd_create(f"openblas-{kernel_set}")
        _copy(library, copy)
        return OpenBlas(f"/proc/self/fd/{copy}", *_spelling(library))


@lru_cache(maxsize=1)
def numpy_library() -> Path | None:
    """The OpenBLAS file inside numpy's wheel; None where numpy was built otherwise."""
    package = Path(np.__file__).parent
    folders = [package.parent / "numpy.libs", package / ".libs"]
    found = [
        file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*openblas*"))
    ]
    return found[0] if found else None


def _spelling(library: Path) -> tuple[str, str]:
    """(suffix, prefix) of the symbols: numpy's wheels carry 64-bit integers, and since 1.26 a
    prefix.
    """
    suffix = "64_" if "64_" in library.name else ""
    return suffix, "scipy_" if "scipy" in library.name else ""


def _copy(source: Path, descriptor: int) -> None:
    with source.open("rb") as file:
        remaining, offset = source.stat().st_size, 0
        while offset < remaining:
            offset += os.sendfile(descriptor, file.fileno(), offset, remaining - offset)


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, set for as long as the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
