"""How long a run has from the signal that stops it to its end, as whoever starts it says."""

import math
import os

from dist_ml.errors import ConfigError

LEAD = "DIST_ML_LEAD_SECONDS"
LEAST_SECONDS = 30.0  # what Slurm gives after SIGTERM, too, unless told otherwise (KillWait)


def lead_seconds() -> float | None:
    """What `DIST_ML_LEAD_SECONDS` says; None where it is not set. `ConfigError` for anything that
    is no number of seconds.
    """
    text = os.environ.get(LEAD, "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigError(
            f"{LEAD}={text} must be a number of seconds, as in {LEAD}=120; correct or unset it"
        )
    return seconds


def seconds_to_stop() -> float:
    """What a run that was told to end gets before it is ended: its lead, 30 s at least."""
    return max(LEAST_SECONDS, lead_seconds() or 0.0)
