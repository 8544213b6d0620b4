"""What is said of a run, in a few words each."""

from collections.abc import Mapping
from typing import Any

from dist_ml.train.display.predicted import predicted_lines


def describe(values: Mapping[str, float]) -> list[str]:
    """The values that are known, in a few words each: short enough for 80 columns together."""
    words = []
    if "loss" in values:
        words.append(f"loss {values['loss']:.4f}")
    if "test_accuracy" in values:
        words.append(f"acc {values['test_accuracy']:.2%}")
    elif "test_loss" in values:
        words.append(f"test {values['test_loss']:.4f}")
    if "samples_per_second" in values:
        words.append(f"{short(values['samples_per_second'])}/s")
    if "communication_share" in values:
        words.append(f"comm {values['communication_share']:.0%}")
    return words


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: what is in the summary of text, test accuracy or loss, speed,
    communication, and the folder.
    """
    lines = []
    if summary.get("text_sample"):
        lines.append("text sample     begun by the data, continued by the model:")
        lines += ["", *(f"  {line}" for line in summary["text_sample"].split("\n")), ""]
    if summary.get("test_bits_per_byte") is not None:
        lines.append(f"bits per byte   {summary['test_bits_per_byte']:.4g}")
    if summary.get("test_accuracy") is not None:
        lines.append(f"test accuracy   {summary['test_accuracy']:.2%}")
    elif summary.get("test_loss") is not None:
        lines.append(f"test loss       {summary['test_loss']:.6g}")
    if summary.get("num_skipped"):
        skipped, steps = summary["num_skipped"], summary["num_steps"]
        lines.append(f"steps left out  {skipped:,} of {steps:,}: loss or gradient not finite")
    if summary.get("samples_per_second") is not None:
        seconds = (
            f" in {summary['seconds']:.1f} s on {ranks(summary)}" if "seconds" in summary else ""
        )
        lines.append(f"samples/s       {summary['samples_per_second']:,.0f}{seconds}")
    if summary.get("communication_share") is not None:
        lines.append(f"communication   {summary['communication_share']:.1%} of the time")
    if summary.get("bubble") is not None:
        lines.append(
            f"bubble          {summary['bubble']:.1%} of the last step, "
            f"{summary['planned_bubble']:.1%} planned ({summary['schedule']})"
        )
    lines += predicted_lines(summary)
    if summary.get("folder") is not None:
        lines.append(f"run folder      {summary['folder']}")
    return lines


def ranks(summary: Mapping[str, Any]) -> str:
    count = summary.get("ranks", 1)
    return f"{count} rank{'s' if count != 1 else ''}"


def short(number: float) -> str:
    """Three digits and a unit: 950, 1.23k, 45.6M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
