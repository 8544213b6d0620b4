"""What `dist-ml bench overlap` makes of the seconds of its candidates, and the limits it holds them
against.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from dist_ml.bench.form import Check, Record
from dist_ml.bench.overlap_part import AFTER, BF16, DDP, DDP_ALONE, NATIVE, NOTHING, POLL, THREAD
from dist_ml.measure.compare import difference, ratio

Seconds: TypeAlias = Mapping[str, Sequence[float]]


def exchange_parts(seconds: Seconds) -> list[Record]:
    """What the exchange adds to each step: over the same step without it."""
    return [
        {
            "exchange": name,
            "adds_ms": 1e3 * difference(seconds[name], seconds[alone]).median,
            "step_over_alone": ratio(seconds[name], seconds[alone]).median,
            "step_over_ddp": ratio(seconds[name], seconds[DDP]).median,
        }
        for name, alone in (
            (AFTER, NOTHING),
            (THREAD, NOTHING),
            (NATIVE, NOTHING),
            (DDP, DDP_ALONE),
        )
    ]


def node_checks(seconds: Seconds) -> list[Check]:
    """Of one node, whose memory is the network."""
    return [
        Check(
            "step over DDP with gloo, one node",
            ratio(seconds[AFTER], seconds[DDP]).median,
            0.6,
            "lower",
        ),
        Check(
            "step over no exchange, one node",
            ratio(seconds[AFTER], seconds[NOTHING]).median,
            1.15,
            "lower",
        ),
    ]


def network_checks(seconds: Seconds, network: str) -> list[Check]:
    """Against DDP over the same links, with as many bits on the wire and with half of them."""
    full, half = ratio(seconds[THREAD], seconds[DDP]), ratio(seconds[BF16], seconds[DDP])
    return [
        Check(f"step over DDP with gloo, {network}", full.median, 0.8, "lower"),
        Check(f"step over DDP with gloo, {network}, bf16 wire", half.median, 0.8, "lower"),
    ]


def hidden(found: Mapping[str, Any]) -> tuple[list[Record], list[Check]]:
    """The share of the exchange that each way to overlap hides, and the check of the better one.
    Differences are of the same round, which saw the machine in the same state.

    Where the exchange takes no time there is nothing to hide, and the check fails.
    """
    seconds, processor = found["seconds"], found["processor"]
    exchange = difference(seconds[AFTER], seconds[NOTHING]).median
    records: list[Record] = []
    shares = []
    for name in (THREAD, POLL):
        left = difference(seconds[name], seconds[NOTHING]).median
        shares.append(1 - left / exchange if exchange > 0 else 0.0)
        records.append(
            {
                "overlap": name,
                "exchange_ms": 1e3 * exchange,
                "exchange_over_backward": exchange / found["backward"],
                "hidden": shares[-1],
                "exchange_processor_ms": 1e3
                * difference(processor[name], processor[NOTHING]).median,
            }
        )
    return records, [Check("share of the exchange hidden", max(shares), 0.8, "higher")]
