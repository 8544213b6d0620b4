"""Remedies that can be typed as they stand."""

import sys
import tomllib
from pathlib import Path

import pytest

from dist_ml.launch import extras

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize("extra", list(extras.REQUIREMENTS))
def test_a_remedy_installs_what_the_extra_stands_for(extra: str) -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert declared[extra] == [extras.REQUIREMENTS[extra]]
    requirement = f"'{declared[extra][0]}'"
    assert extras.install_command(extra) == f"{sys.executable} -m pip install {requirement}"


def test_no_message_asks_for_dist_ml_from_an_index() -> None:
    package = PROJECT.parent / "dist_ml"
    asking = [file for file in package.rglob("*.py") if "install dist_ml[" in file.read_text()]
    asking += [file for file in package.rglob("*.py") if "install 'dist_ml[" in file.read_text()]
    assert asking == []
