"""What was predicted of a run beside what was measured, within 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from dist_ml.measure.memory import spell_bytes

_WIDTH, _INDENT = 80, 16
_TIMES = 2  # from so many on, times are told
_HINT = "run dist-ml launch -n N calibrate once on this machine"


def predicted_lines(summary: Mapping[str, Any]) -> list[str]:
    """A line a quantity, how far they are apart, and the likely reasons; where the machine isn't
    calibrated a hint alone; nothing of a run that can't be predicted.
    """
    rows = quantities(summary)
    if not rows:
        calibrated = "calibrate" not in str(summary.get("not_predicted", ""))
        return [] if calibrated else [f"{'predicted':{_INDENT}}{_HINT}"]
    lines = [f"{'':{_INDENT}}{'predicted':>14}{'measured':>14}"]
    for row in rows:
        within = "  " if row["unit"] == "s" and row["name"] != "step" else ""
        both = [spell(row[which], row["unit"]) for which in ("predicted", "measured")]
        lines.append(f"{within + row['name']:{_INDENT}}{both[0]:>14}{both[1]:>14}{apart(row):>10}")
    for why, names in reasons(rows).items():
        words = f"{', '.join(names)}, likely reason: {why}"
        indent = " " * _INDENT
        lines += textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def quantities(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that a summary holds whole; another program may have written it."""
    rows = summary.get("predicted")
    numbers = ("predicted", "measured")
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("name", "unit", "why"))
        and all(isinstance(row.get(key), (int, float)) for key in numbers)
    ]


def spell(number: float, unit: str) -> str:
    """12.3 ms, 1,234 or 45 MB."""
    if unit == "s":
        return f"{1e3 * number:,.3g} ms" if number < 1 else f"{number:,.3g} s"
    return spell_bytes(int(number)) if unit == "bytes" else f"{number:,.6g}"


def apart(row: Mapping[str, Any]) -> str:
    """How far measured is from predicted: +12%, 3.4 x, or equal."""
    predicted, measured = row["predicted"], row["measured"]
    if measured == predicted:
        return "equal"
    if not predicted:
        return "-"
    ratio = measured / predicted
    return f"{ratio:.3g} x" if ratio >= _TIMES else f"{ratio - 1:+.0%}"


def reasons(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What each likely reason explains."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["why"]:
            found.setdefault(row["why"], []).append(row["name"])
    return found
