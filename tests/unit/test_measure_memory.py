"""The memory that a process may use, and sizes in words."""

import os
from pathlib import Path

import pytest

from dist_ml.measure.memory import physical_bytes, spell_bytes


def test_the_lower_of_the_machines_memory_and_the_control_groups_limit(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    assert physical_bytes(limit) == machine
    for text, expected in (("max\n", machine), ("1000\n", 1000), (str(machine * 2), machine)):
        limit.write_text(text)
        assert physical_bytes(limit) == expected


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_999_999_999, "1 GB"),
        (10**21, "1000 EB"),
        (10**400, f"1{'0' * 382} EB"),
    ],
    ids=["nothing", "bytes", "kilobyte", "rounded down", "beyond units", "beyond floats"],
)
def test_sizes_are_spelled_in_whole_numbers(number: int, words: str) -> None:
    assert spell_bytes(number) == words
