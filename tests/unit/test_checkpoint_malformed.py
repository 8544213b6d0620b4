"""Indexes that hold what they shouldn't: refused in words, whoever wrote their checksum."""

import copy
import functools
import json
import operator
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_ml.checkpoint.checksum import checksum
from dist_ml.checkpoint.index_parser import parse
from dist_ml.checkpoint.reader import open_checkpoint
from dist_ml.checkpoint.verify import check_files
from dist_ml.errors import DataError
from dist_ml.placement import whole
from tests.checkpoint_world import CUTS, save_from, state
from tests.malformed import ODD

NUM_INDEXES = 300
ODD_HERE = [*ODD, 2**63, 2**64 + 1, "F8", "I64", "../x", "rank-0001.safetensors", [1], [2**70, 0]]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    if path:
        yield path
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield from places(value[key], (*path, key))


def test_odd_indexes_are_refused_in_words(tmp_path: Path) -> None:
    folder = save_from(state(), tmp_path, 1, 2, CUTS["flat"])
    good = json.loads((folder / "index.json").read_text())
    chance, refused, everywhere = random.Random(7), 0, list(places(good))
    for _ in range(NUM_INDEXES):
        content = copy.deepcopy(good)
        *above, key = chance.choice(everywhere)
        inside = functools.reduce(operator.getitem, above, content)
        inside[key] = chance.choice(ODD_HERE)
        (folder / "index.json").write_text(json.dumps(content))
        commit = {"index_checksum": checksum((folder / "index.json").read_bytes())}
        (folder / "COMMIT").write_text(json.dumps(commit))
        try:
            found = open_checkpoint(folder)
            check_files(folder, found.index)
            for name in found.names:
                found.read(name, whole(found.shape(name)))
        except DataError as error:
            refused += str(folder) in str(error)
    assert refused > 0.7 * NUM_INDEXES  # the others changed what only a person reads, or nothing


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", "{}", "[" * 100_000, '{"format": "dist_ml checkpoint"}', "\ud800"]
)
def test_what_is_no_index(text: str) -> None:
    with pytest.raises(DataError, match="it is no index of a checkpoint"):
        parse(text)


@pytest.mark.parametrize("commit", ["", "{}", "[]", '"x"', "\udcff", '{"index_checksum": 3}'])
def test_what_is_no_commit(commit: str, tmp_path: Path) -> None:
    folder = save_from(state(), tmp_path)
    (folder / "COMMIT").write_bytes(commit.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"step-1"):
        open_checkpoint(folder)


def test_a_later_version_is_told(tmp_path: Path) -> None:
    text = (save_from(state(), tmp_path) / "index.json").read_text()
    with pytest.raises(DataError, match="its version is 2, and this reads 1"):
        parse(text.replace('"version":1', '"version":2'))
