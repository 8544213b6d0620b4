"""Which kernel is fastest here, for which shapes: measured once on this machine, in a child
process, and kept in the user's cache.

A shape class is (dtype, threads, how the operands are stored, and m, n, k to the nearest power of
two). What was never measured runs on torch, and a kernel is only preferred to torch where it was
faster by `MARGIN`: tuning can't make a product slower.
"""

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from dist_ml.kernels import kernels, processor
from dist_ml.measure import cache

log = logging.getLogger(__name__)

# A kernel has to beat torch by this much in the measurement to be chosen: closer than that is
# noise.
MARGIN = 1.03
FALLBACK = "torch"
_CACHE = "gemm-kernels"
_TIME_LIMIT_SECONDS = 240.0


class Shape(NamedTuple):
    """A product to tune for. `stored` tells how A and B lie in memory: N row-major, T
    transposed.
    """

    m: int
    n: int
    k: int
    stored: str = "NN"
    dtype: str = "float32"

    @property
    def key(self) -> str:
        sizes = "x".join(str(round(math.log2(max(1, size)))) for size in self[:3])
        return f"{self.dtype}:{self.stored}:{sizes}"


class Tuner:
    """The choices for one number of threads. Looking one up costs a dictionary access; it never
    measures.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._choices: dict[Shape, str] = {}
        self._measured: dict[str, dict[str, float]] = {}
        self.reload()

    def reload(self) -> None:
        """Read again what has been measured. What isn't rates of usable kernels (a damaged file,
        another version's) counts as never measured.
        """
        self._measured = valid_rates((cache.load(_CACHE) or {}).get(machine(self.threads)))
        self._choices.clear()

    def choose(self, shape: Shape) -> str:
        """The name of the kernel for `shape`: torch where nothing was measured or nothing is
        faster.
        """
        choice = self._choices.get(shape)
        if choice is None:
            choice = self._choices[shape] = best(self._measured.get(shape.key, {}))
        return choice

    def saved_seconds(self, shape: Shape, name: str) -> float:
        """How much shorter one product was on kernel `name` than on torch; 0 where that is
        unknown.
        """
        rates = self._measured.get(shape.key, {})
        if name not in rates or FALLBACK not in rates:
            return 0.0
        return 2e-9 * shape.m * shape.n * shape.k * (1 / rates[FALLBACK] - 1 / rates[name])

    def rates(self, shape: Shape) -> dict[str, float]:
        """Measured GFLOP/s by kernel; empty where the class was never measured."""
        return dict(self._measured.get(shape.key, {}))

    def tune(self, shapes: Iterable[Shape], again: bool = False) -> None:
        """Measure the classes that have not been (all of them if `again`) in a child process, and
        keep the results.
        """
        missing = {shape.key: shape for shape in shapes if again or shape.key not in self._measured}
        if not missing:
            return
        found = _measure(list(missing.values()), self.threads)
        cache.merge(_CACHE, machine(self.threads), found)
        self.reload()
        self._measured.update(found)  # also where the cache can't be written


def best(rates: dict[str, float]) -> str:
    """The fastest kernel, if it beats torch clearly."""
    fastest = max(rates, key=lambda name: rates[name], default=FALLBACK)
    return fastest if rates.get(fastest, 0.0) > MARGIN * rates.get(FALLBACK, math.inf) else FALLBACK


def _measure(shapes: list[Shape], threads: int) -> dict[str, dict[str, float]]:
    """GFLOP/s by class and kernel. A kernel that brings the child down costs the OpenBLAS sets, not
    this process.
    """
    for names in (kernels.usable(), ["torch", "numpy"]):
        request = json.dumps(
            {"shapes": [list(shape) for shape in shapes], "kernels": names, "threads": threads}
        )
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "dist_ml.kernels.rates"],
                input=request,
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT_SECONDS,
                env=environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("kernels can't be measured here, so torch's are used: %s", error)
            return {}
        if done.returncode == 0:
            return valid_rates(json.loads(done.stdout))
    log.warning(
        "kernels can't be measured here, so torch's are used: the measuring process ended with "
        "%s: %s",
        done.returncode,
        done.stderr.strip()[-500:],
    )
    return {}


def valid_rates(values: object) -> dict[str, dict[str, float]]:
    """The classes of `values` that hold a rate above 0 for usable kernels only."""
    if not isinstance(values, dict):
        return {}
    usable = set(kernels.usable())
    return {
        key: rates
        for key, rates in values.items()
        if isinstance(rates, dict)
        and usable.issuperset(rates)
        and all(isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates.values())
    }


def machine(threads: int) -> str:
    """Measurements hold for one processor, one number of threads, and these versions of the
    libraries.
    """
    versions = f"torch {torch.__version__} | numpy {np.__version__}"
    return f"{processor.name()} | {threads} threads | {versions}"
