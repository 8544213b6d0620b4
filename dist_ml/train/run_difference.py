"""Whether two runs came to the same, to the last bit, and where they first did not."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dist_ml.checkpoint import folder as folders
from dist_ml.checkpoint.reader import Checkpoint
from dist_ml.checkpoint.verify import check_files
from dist_ml.errors import DataError
from dist_ml.placement import whole
from dist_ml.train import metrics
from dist_ml.train.run_folder import RunFolder, load_config

# What a line of metrics.jsonl has of one step: not means since the line before.
_VALUES = ("test_loss", "test_accuracy", "test_bits_per_byte", "loss", "learning_rate")
_END = 1 << 62  # a step after all others


class Comparison(NamedTuple):
    """`difference`: the first, in words; None where there is none. `compared`: what was, by kind,
    up to there.
    """

    difference: str | None
    compared: Mapping[str, int]


class _Pair(NamedTuple):
    """Something that both runs have after `step` steps; `difference()` compares it."""

    step: int
    kind: str
    difference: Callable[[], str | None]


def compare_runs(a: Path, b: Path) -> Comparison:
    """Two runs' losses, evaluations, checkpoints and final weights, of all steps of which both have
    kept them, in the order in which they arose.

    `DataError` for what is no run, can't be read or is damaged, and where they have nothing in
    common. Memory: two tensors.
    """
    folders_ = [RunFolder(path) for path in (a, b)]
    for run in folders_:
        load_config(run.path)
    pairs = [*_checkpoints(*folders_), *_values(*folders_), *_weights(*folders_)]
    if not pairs:
        raise DataError(
            f"{a} and {b} have no logged step, no checkpoint and no final weights in common; "
            "compare runs with the same log_every and checkpoint.every"
        )
    compared: dict[str, int] = {}
    for pair in sorted(pairs, key=lambda pair: pair.step):  # those of one step as they are listed
        compared[pair.kind] = compared.get(pair.kind, 0) + 1
        found = pair.difference()
        if found is not None:
            where = "at the end" if pair.step == _END else f"at step {pair.step}"
            return Comparison(f"{where}: {found}", compared)
    return Comparison(_only_one_ended(*folders_), compared)


def _only_one_ended(a: RunFolder, b: RunFolder) -> str | None:
    ended = [run.path for run in (a, b) if run.model.exists()]
    return f"only {ended[0]} has final weights" if len(ended) == 1 else None


def _values(a: RunFolder, b: RunFolder) -> Iterator[_Pair]:
    lines = [_by_step(run) for run in (a, b)]
    for place in lines[0]:
        if place in lines[1]:
            step, name = place
            ours, theirs = (of_run[place] for of_run in lines)
            yield _Pair(step, "values", lambda n=name, x=ours, y=theirs: _value(n, x, y))  # type: ignore[misc]


def _by_step(run: RunFolder) -> dict[tuple[int, str], Any]:
    lines = metrics.read(run.metrics) if run.metrics.exists() else []
    return {
        (line["step"], name): line[name]
        for line in lines
        for name in _VALUES
        if name in line and isinstance(line.get("step"), int)
    }


def _value(name: str, a: Any, b: Any) -> str | None:
    # Numbers are written so that the same bits, and no others, have the same digits.
    return None if repr(a) == repr(b) else f"{name} {a!r} and {b!r}"


def _checkpoints(a: RunFolder, b: RunFolder) -> Iterator[_Pair]:
    ours, theirs = (
        {folders.read_index(path).step: path for path in folders.committed(run.checkpoints)}
        for run in (a, b)
    )
    for step in sorted(ours.keys() & theirs.keys()):
        paths = ours[step], theirs[step]
        yield _Pair(step, "checkpoints", lambda paths=paths: _states(*map(_opened, paths)))  # type: ignore[misc]


def _opened(path: Path) -> Checkpoint:
    index = folders.read_index(path)
    check_files(path, index)
    return Checkpoint(path, index)


def _states(a: Checkpoint, b: Checkpoint) -> str | None:
    def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        return checkpoint.read(name, whole(checkpoint.shape(name)))

    return _names(a.names, b.names) or _first(
        _tensor(name, read(a, name), read(b, name)) for name in a.names
    )


def _weights(a: RunFolder, b: RunFolder) -> Iterator[_Pair]:
    if a.model.exists() and b.model.exists():
        yield _Pair(_END, "final weights", lambda: _dicts(_loaded(a.model), _loaded(b.model)))


def _loaded(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} can't be read ({error}); was it changed?") from error


def _dicts(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> str | None:
    return _names(a, b) or _first(_tensor(name, a[name], b[name]) for name in a)


def _names(a: Any, b: Any) -> str | None:
    alone = sorted({*a} ^ {*b})
    return f"only one of them has {alone[0]}" if alone else None


def _tensor(name: str, a: torch.Tensor, b: torch.Tensor) -> str | None:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"{name} is {list(a.shape)} of {a.dtype} and {list(b.shape)} of {b.dtype}"
    bits = [tensor.reshape(-1, 1).view(torch.uint8) for tensor in (a, b)]
    others = (bits[0] != bits[1]).any(1).nonzero().flatten()
    if not len(others):
        return None
    first = tuple(int(i) for i in torch.unravel_index(others[0], a.shape))
    values = f"{a[first].item()!r} and {b[first].item()!r}"
    return f"{name} in {len(others)} of {a.numel()} elements, first {list(first)}: {values}"


def _first(differences: Iterator[str | None]) -> str | None:
    return next((found for found in differences if found is not None), None)
