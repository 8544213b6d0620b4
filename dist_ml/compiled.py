"""The compiler of the inner loops: numba, which is optional (extra: numba). Every compiled loop has
a plain reference.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from dist_ml.launch.stacks import rank

log = logging.getLogger(__name__)


@cache
def available() -> bool:
    """True where numba is installed and `DIST_ML_NUMBA=0` does not forbid it. Imports nothing,
    because numba takes a second.
    """
    return os.environ.get("DIST_ML_NUMBA", "1") != "0" and find_spec("numba") is not None


def compiled_loop(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(nogil=True, **options)`, whose machine code is kept between runs where there is a
    folder for it.

    Where neither the package's folder nor the user's cache can be written (a read-only install,
    say), the loop is compiled anew in each process, which is said once.
    """
    import numba

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
        _report_no_cache()
        return numba.njit(nogil=True, **options)(function)

    return compile_


@cache
def _report_no_cache() -> None:
    log.log(
        logging.INFO if rank(os.environ) else logging.WARNING,  # for all ranks, once
        "compiled loops can't be kept: neither the package's folder nor the user's cache can be "
        "written, so that each start compiles them anew (seconds); set NUMBA_CACHE_DIR to a folder "
        "that can be written",
    )
