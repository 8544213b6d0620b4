"""Which blocks of a model do the same work: repeated ones are recorded once."""

import re
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import nn

from dist_ml.models.dropout import Dropout

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # in names of layers
# Attributes that tell layers apart and don't change what they compute.
_ONLY_NAMES = {(Dropout, "_layer")}


def block_key(module: nn.Module) -> Hashable:
    """Equal for two modules of one model only where they run the same operators on tensors of the
    same shapes: everything that they hold is compared, tensors by shape, and what isn't understood
    by identity. O(objects); ask before the module has run, since layers remember what they saw.
    """
    return _key(module, ())


def _key(value: Any, inside: tuple[int, ...]) -> Hashable:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.requires_grad
    if isinstance(value, str):
        return _NUMBER.sub("#", value)
    if value is None or isinstance(value, bool | int | float | torch.dtype):
        return type(value), value
    if id(value) in inside:
        return "itself", len(inside) - inside.index(id(value))
    inside = (*inside, id(value))
    if isinstance(value, tuple | list):
        return type(value), *(_key(item, inside) for item in value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_key(item, inside) for item in value)
    if isinstance(value, Mapping):
        items = [(_key(name, inside), _key(item, inside)) for name, item in value.items()]
        return type(value), *items
    if isinstance(value, nn.Module) or type(value).__module__.startswith("dist_ml."):
        return _object_key(value, inside)
    return id(value)


def _object_key(value: Any, inside: tuple[int, ...]) -> Hashable:
    held = getattr(value, "__dict__", None)
    if held is None:
        return id(value)
    named = [
        (name, _key(item, inside))
        for name, item in held.items()
        if (type(value), name) not in _ONLY_NAMES
    ]
    return type(value), *named
