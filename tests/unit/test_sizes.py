"""What the code base holds itself to, read from its files: the sizes of functions and files, lines
of tests, and names that were given up for those of the field.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "dist_ml").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
LONGEST_FUNCTION = 45  # lines, from `def` to the last
LONG_FILE, SHARE_OF_LONG_FILES = 180, 0.1
LEAST_TESTS = 0.6  # lines of tests for each of the package
# As they were written; underscores around them don't count.
RETIRED = {
    "Patience", "Patient", "Watch", "patience", "finish_behind", "hurry", "enough", "behind",
    "flying", "Stepping", "near", "far", "rail", "Arenas", "Arena", "arena", "ticket", "Taken",
    "give_back", "peek", "drifted", "Rules", "TAIL", "settle", "Swapped", "Xi", "Sums",
    "hand_over", "take_up", "laboratory", "twin", "collectively",
}  # fmt: skip
# What an identifier of several words may not hold either.
RETIRED_WORDS = {"patience", "flying", "rail", "arena", "arenas", "ticket", "laboratory", "twin"}
SUSPICIOUS = re.compile("|".join(RETIRED | RETIRED_WORDS), re.IGNORECASE)


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Functions of more than `LONGEST_FUNCTION` lines, and how many they have."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield node.name, lines


def identifiers(source: str) -> Iterator[str]:
    """Every name that the source makes or uses: of variables, attributes, arguments, functions,
    classes, keywords, modules.
    """
    for node in ast.walk(ast.parse(source)):
        for attribute in ("id", "attr", "arg", "name", "asname", "module"):
            name = getattr(node, attribute, None)
            if isinstance(name, str):
                yield from name.split(".")


def retired(source: str) -> list[str]:
    """The identifiers of `source` that were given up."""
    if not SUSPICIOUS.search(source):
        return []  # without parsing it
    return [
        name
        for name in dict.fromkeys(identifiers(source))
        if name.strip("_") in RETIRED or not RETIRED_WORDS.isdisjoint(name.lower().split("_"))
    ]


def test_no_function_is_long() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}: {name} has {lines} lines"
        for file in FILES
        for name, lines in long_functions(file.read_text())
    ]
    assert found == []


def test_nine_of_ten_files_are_short() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in FILES}
    long = [
        f"{file.relative_to(REPOSITORY)}: {lines}"
        for file, lines in lengths.items()
        if lines > LONG_FILE
    ]
    assert len(long) <= SHARE_OF_LONG_FILES * len(FILES), "\n".join(long)


def test_there_are_enough_lines_of_tests() -> None:
    lines, tests = (
        sum(len(file.read_text().splitlines()) for file in files) for files in (FILES, TESTS)
    )
    assert tests >= LEAST_TESTS * lines, f"{tests} lines of tests for {lines}"


def test_names_that_were_given_up_are_not_back() -> None:
    found = {
        str(file.relative_to(REPOSITORY)): names
        for file in [*FILES, *TESTS]
        if (names := retired(file.read_text()) + retired(f"{file.stem} = 0"))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class Patience: ...", ["Patience"]),
        ("def f(hurry): return self._behind", ["hurry", "_behind"]),
        ("from dist_ml.launch import laboratory as emulated", ["laboratory"]),
        ("call(near=1, nearest=2)", ["near"]),
        ("PATIENCE_SECONDS = naive_twin = 1", ["PATIENCE_SECONDS", "naive_twin"]),
        ("# patience\ntext = 'ticket'; watch = trailing = enough_room = 1", []),
    ],
)
def test_a_name_that_is_back_is_found(source: str, found: list[str]) -> None:
    assert sorted(retired(source)) == sorted(found)


@pytest.mark.parametrize(("lines", "found"), [(45, []), (46, [("f", 46)])])
def test_a_long_function_is_found_wherever_it_stands(
    lines: int, found: list[tuple[str, int]]
) -> None:
    body = "\n".join(["        x = 1"] * (lines - 1))
    assert list(long_functions(f"class A:\n    @staticmethod\n    def f():\n{body}\n")) == found
