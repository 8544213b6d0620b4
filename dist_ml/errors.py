"""The errors a user can cause.

Each message states the rule, the value that broke it and the remedy, because it is printed alone:
no traceback goes with it unless `--debug` is given. What only a programmer can cause is an
`assert`.
"""


class DistMLError(Exception):
    """Base of all errors that are the user's to mend."""

    exit_status = 2
    # Set when every rank raises this same error, so that one message and a regular end are enough.
    agreed = False


class ConfigError(DistMLError):
    """A key, a value or a combination of values that the configuration rules forbid."""


class DataError(DistMLError):
    """A data file that is missing, malformed, or holds values that can't be trained on."""


class DamageError(DataError):
    """A file whose bytes are not those that were written: missing, cut short, another checksum."""


class MeshError(DistMLError):
    """Axis sizes that don't fit the ranks that were started."""


class CommunicationError(DistMLError):
    """A buffer, a dtype or a sequence of collectives that can't be communicated correctly, or a
    rank that others wait for in vain.
    """

    exit_status = 69  # EX_UNAVAILABLE: started again, the job may come to its end


class PeerLostError(CommunicationError):
    """Another rank has died."""


class MachineError(DistMLError):
    """Something that the machine lacks: an MPI, a launcher, a privilege, an optional package."""


class NonFiniteError(DistMLError):
    """A loss or a gradient that is NaN or infinite, agreed on by all ranks."""

    exit_status = 3


class ScheduleError(ConfigError):
    """A pipeline schedule that can't be made, read or run."""
