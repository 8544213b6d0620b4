"""What one rank's flight record says: its calls, its groups, and where its threads stood."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_ml.flight.recorder import ANY_PEER

State = Literal["scheduled", "started", "completed"]


@dataclass(frozen=True)
class Call:
    """One record; `peer` is a world rank, as all ranks outside of a `Recorder`."""

    number: int
    group: str
    sequence: int  # of the group's collectives, or of the messages of this call, peer and tag
    call: str
    detail: str | int | None  # operator or root of a collective, tag of a message
    dtype: str
    count: int | None
    peer: int | None  # of a message; -1: any
    file: str
    line: int
    function: str
    entered: float
    waited: float | None
    ended: float | None

    @property
    def is_message(self) -> bool:
        return self.peer is not None

    @property
    def state(self) -> State:
        """A rank that waits for a call has `started` it; before, it is `scheduled`."""
        if self.ended is not None:
            return "completed"
        return "scheduled" if self.waited is None else "started"

    @property
    def what(self) -> tuple[str, str | int | None, str, int | None]:
        """What must be the same on all ranks of a collective."""
        return self.call, self.detail, self.dtype, self.count

    @property
    def like(self) -> tuple[str | int | None, ...]:
        """What it has in common with the same call of another round, on one rank."""
        if self.is_message:
            return self.call, self.peer, self.group, self.detail
        return *self.what, self.group

    @property
    def place(self) -> str:
        return f"{short_path(self.file)}:{self.line}"

    def __str__(self) -> str:
        detail = "" if self.detail is None or self.is_message else f" {self._detail}"
        data = (
            ""
            if self.dtype == "-"
            else f" {self.dtype}[{'…' if self.count is None else f'{self.count:,}'}]"
        )
        if not self.is_message:
            return f"{self.call}{detail}{data} (number {self.sequence} of {self.group})"
        way = "to" if self.call == "send" else "from"
        peer = "any rank" if self.peer == ANY_PEER else f"rank {self.peer}"
        return f"{self.call} {way} {peer}{data} (tag {self.detail}, group {self.group})"

    @property
    def _detail(self) -> str:
        return self.detail if isinstance(self.detail, str) else f"from {self.detail}"


@dataclass(frozen=True)
class Group:
    """A communicator: its members, and how many collectives this rank has begun in it."""

    ranks: tuple[int, ...]
    collectives: int


@dataclass(frozen=True)
class Flight:
    """What one rank wrote."""

    rank: int
    size: int
    host: str
    pid: int
    reason: str
    written: float
    step: int | None
    groups: dict[str, Group]
    calls: tuple[Call, ...]
    threads: dict[str, tuple[str, ...]]

    @property
    def open_calls(self) -> list[Call]:
        """Those that have not ended, the oldest first."""
        return [call for call in self.calls if call.state != "completed"]


def short_path(path: str) -> str:
    """The file and its folder: enough to find it by."""
    return "/".join(Path(path).parts[-2:])
