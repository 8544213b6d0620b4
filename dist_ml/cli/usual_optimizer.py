"""Choosing a model chooses the optimizer that it is usually trained by, unless that is chosen, too.

Hydra's own way is an `override` in the model's file, which must name the optimizer's place from the
root: it fails where a benchmark has a training configuration under a key of its own.
"""

from collections.abc import Sequence

from hydra.core.override_parser.types import Override

# Options of the groups `model` and `optimizer`. A Transformer learns little by plain SGD.
_USUAL = {"cnn": "adamw", "transformer": "adamw"}


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
        usual = _USUAL.get(str(override.value()))
        if usual is not None and key not in chosen:
            added.append(f"{key}={usual}")
    return added
