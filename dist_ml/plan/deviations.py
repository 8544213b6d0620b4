"""What was predicted of a run beside what was measured in it, for its summary.

step                   the mean over the run
phases                 those of rank 0; of a pipeline its passes and waits are one
words along an axis    rank 0's, which must be equal
memory                 the most that rank 0 has had resident, before it gathers the model
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from dist_ml.config.train import TrainConfig
from dist_ml.errors import ConfigError, MachineError
from dist_ml.plan import calibrated
from dist_ml.plan.likely_reasons import FAR, Run, likely_reason
from dist_ml.plan.machine import Processor
from dist_ml.plan.networked import Machine
from dist_ml.plan.step_memory import rank_bytes
from dist_ml.plan.step_plan import StepPlan, plan_step
from dist_ml.plan.step_seconds import step_seconds
from dist_ml.train.axis_words import sums_all_gradients
from dist_ml.train.trainer import Trainer

log = logging.getLogger(__name__)

# Measured phases that are predicted as one.
_PIPELINE = ("data", "forward", "backward", "wait")
_SMALL = 0.05  # of a step: phases below aren't worth a reason


def beside_measured(
    config: TrainConfig, trainer: Trainer, summary: Mapping[str, Any], ranks_per_node: int
) -> dict[str, Any]:
    """What to add to a finished run's summary: `predicted`, a list of {name, unit, predicted,
    measured, why}, or `not_predicted`, the reason. `why`: likely; empty where the two are close.

    On rank 0 alone, after training: a few milliseconds a layer; nothing where this machine isn't
    calibrated. Whatever goes wrong is the answer, and no error of the run.
    """
    try:
        return {"predicted": _quantities(config, trainer, summary, ranks_per_node)}
    except (ConfigError, MachineError) as error:
        return {"not_predicted": str(error)}
    except Exception as error:  # the run is over, and well
        log.warning("its seconds, words and memory couldn't be predicted", exc_info=True)
        return {"not_predicted": f"{type(error).__name__}: {error}"}


def _quantities(
    config: TrainConfig, trainer: Trainer, summary: Mapping[str, Any], ranks_per_node: int
) -> list[dict[str, Any]]:
    processor = calibrated.load(ranks_per_node, summary["threads"])
    if not sums_all_gradients(config):
        raise ConfigError("sparse exchange and local steps are not modelled")
    plan = plan_step(config, summary["ranks"], trainer.dataset.train)
    held = processor.base_bytes + sum(rank_bytes(plan).values())
    rows = _seconds(plan, processor, summary, ranks_per_node)
    for axis, words in summary["planned_words_by_axis"].items():
        rows.append(_row(f"{axis} words", "words", words, summary["words_by_axis"].get(axis, 0)))
    rows.append(_row("memory", "bytes", held, summary["peak_bytes"]))
    run = Run(config, summary, processor, ranks_per_node)
    step = summary["seconds"] / max(1, summary["num_steps"])
    for row in rows:
        off = abs(row["measured"] - row["predicted"])
        matters = row["unit"] != "s" or max(row["measured"], row["predicted"]) > _SMALL * step
        limit = 0.0 if row["unit"] == "words" else FAR * row["predicted"]
        row["why"] = likely_reason(row, run) if matters and off > limit else ""
    return rows


def _seconds(
    plan: StepPlan, processor: Processor, summary: Mapping[str, Any], ranks_per_node: int
) -> list[dict[str, Any]]:
    """Of a step and its phases; none where ranks are on several nodes, whose network isn't
    calibrated.
    """
    if summary["ranks"] > ranks_per_node:
        return []
    found = step_seconds(plan, Machine(processor, os.cpu_count() or 1, ranks_per_node))
    steps = max(1, summary["num_steps"])
    measured = {name: spent / steps for name, spent in summary["seconds_by_phase"].items()}
    total = summary["seconds"] / steps
    if "pipeline" in found.phases:
        measured["pipeline"] = sum(measured.pop(name, 0.0) for name in _PIPELINE)
    named = {name: measured.pop(name, 0.0) for name in found.phases if name != "other"}
    named["other"] = total - sum(named.values())
    return [
        _row("step", "s", found.total, total),
        *(_row(name, "s", found.phases.get(name, 0.0), spent) for name, spent in named.items()),
    ]


def _row(name: str, unit: str, predicted: float, measured: float) -> dict[str, Any]:
    return {"name": name, "unit": unit, "predicted": predicted, "measured": measured, "why": ""}
