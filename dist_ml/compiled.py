"""Is there a compiler for the inner loops? numba is optional (extra: numba); every compiled loop
has a plain reference.
"""

import os
from functools import cache
from importlib.util import find_spec


@cache
def available() -> bool:
    """True where numba is installed and `DIST_ML_NUMBA=0` does not forbid it. Imports nothing,
    because numba takes a second.
    """
    return os.environ.get("DIST_ML_NUMBA", "1") != "0" and find_spec("numba") is not None
