"""The cost model: what a message and a word cost on this machine, measured once and kept.

A link is the two numbers of Hockney's model (R. Hockney, "The communication challenge for MPP",
Parallel Computing 20, 1994, section 2): a message of b bytes takes latency + b / rate. Nothing here
communicates: `comm/calibration.py` measures.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Link:
    """One way for a message to go."""

    latency_seconds: float  # of an empty message, one way
    bytes_per_second: float  # of a long one, both directions at once

    def seconds(self, messages: float, num_bytes: float) -> float:
        """What `messages` one after another, `num_bytes` in all, take."""
        return messages * self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class CostModel:
    """What moving data costs between nodes, inside a node, and inside a rank."""

    # a message to a rank of another node (the same as `node` where there is one node)
    network: Link
    node: Link  # a message to a rank of the same node
    # bytes copied by one rank while all ranks of the node copy (read once, written once)
    copy_bytes_per_second: float
    entry_seconds: float = 5e-9  # to merge or code one entry of a sparse vector, likewise

    def seconds(
        self, messages: float, words: float, word_bytes: int = 4, between_nodes: bool = True
    ) -> float:
        """What a rank's `messages`, one after another, with `words` in all take."""
        return (self.network if between_nodes else self.node).seconds(messages, words * word_bytes)

    def copy_seconds(self, words: float, word_bytes: int = 4) -> float:
        """What reading and writing `words` once takes."""
        return words * word_bytes / self.copy_bytes_per_second

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_mapping(mapping: dict[str, Any]) -> "CostModel":
        links = Link(**mapping["network"]), Link(**mapping["node"])
        return CostModel(
            *links, float(mapping["copy_bytes_per_second"]), float(mapping["entry_seconds"])
        )


def fit(samples: Sequence[tuple[float, float]]) -> Link:
    """The link through (bytes, seconds) samples, with least squares of the relative error, so that
    short messages count too.

    Minimises sum (latency / t + b x / t - 1)^2 over latency and x = 1 / rate; either is kept above
    zero.
    """
    assert len(samples) >= 2, "two sizes at least tell latency and rate apart"
    ones = [1 / seconds for _, seconds in samples]
    sizes = [num_bytes / seconds for num_bytes, seconds in samples]
    a, b, d = _dot(ones, ones), _dot(ones, sizes), _dot(sizes, sizes)
    p, q = sum(ones), sum(sizes)
    determinant = a * d - b * b
    latency = (p * d - q * b) / determinant if determinant > 0 else 0.0
    per_byte = (q * a - p * b) / determinant if determinant > 0 else p / b
    fastest = min(seconds for _, seconds in samples)
    largest_bytes, largest_seconds = max(samples)
    return Link(
        max(latency, fastest / 100),
        1 / per_byte if per_byte > 0 else largest_bytes / largest_seconds,
    )


def cache_folder() -> Path:
    """Where what was measured on this machine is kept: `$XDG_CACHE_HOME/dist_ml`, by default
    `~/.cache/dist_ml`.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dist_ml"


def load(name: str) -> dict[str, Any] | None:
    """What was kept under `name`; None where nothing (or nothing readable) was."""
    try:
        kept: dict[str, Any] = json.loads((cache_folder() / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return kept


def store(name: str, values: dict[str, Any]) -> None:
    """Keep `values` under `name`, whole or not at all. A folder that can't be written is no error:
    it is measured again.
    """
    file = cache_folder() / f"{name}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(values, indent=1))
        partial.replace(file)
    except OSError:
        return


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))
