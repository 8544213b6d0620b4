"""Choosing a model chooses the optimizer that it is usually trained by, unless that is chosen, too.

Hydra's own way is an `override` in the model's file, which must name the optimizer's place from the
root: it fails where a benchmark has a training configuration under a key of its own.
"""

from collections.abc import Sequence

from hydra.core.override_parser.types import Override


def usual_optimizers(overrides: Sequence[Override]) -> list[str]:
    """What to add to `overrides`: `optimizer=adamw` beside `model=transformer`, and
    `optimizer@train.optimizer=adamw` beside `model@train.model=transformer`.
    """
    chosen = {override.get_key_element() for override in overrides}
    added = []
    for override in overrides:
        if override.key_or_group != "model" or override.is_sweep_override():
            continue
        *outer, _ = (override.package or "model").split(".")
        key = f"optimizer@{'.'.join(outer)}.optimizer" if outer else "optimizer"
        if key not in chosen and (usual := _usual(str(override.value()))) is not None:
            added.append(f"{key}={usual}")
    return added


def _usual(model: str) -> str | None:
    """The option of `optimizer` that the model comes with."""
    from dist_ml.models import MODELS  # torch takes long to import, and only this needs it

    member = MODELS.get(model)
    return member.usual_optimizer if member is not None else None
