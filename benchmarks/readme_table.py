"""The README's table of measured figures: like against like, one line a row, with its command.

    python benchmarks/readme_table.py [--write] [FOLDER]

Prints, or writes into the README, the rows of readme_table.toml with the figures that
`reproduce.sh` left in FOLDER. A row whose benchmark has no result there keeps the README's figure.
"""

import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HEADINGS = ("what", "measured", "against", "command")
HERE = Path(__file__).parent
README = HERE.parent / "README.md"
_PLACE = re.compile(r"\{([^{}]*):([^{}:]*)\}")


class Row(NamedTuple):
    """As `readme_table.toml` describes it."""

    what: str
    measured: str
    against: str
    label: str

    @property
    def checks(self) -> list[str]:
        """Those whose values it shows."""
        return [name for name, _ in _PLACE.findall(self.measured)]


def main(argv: Sequence[str], readme: Path = README) -> int:
    """Print or write the table."""
    folders = [word for word in argv if word != "--write"]
    if len(folders) > 1 or not all(Path(folder).is_dir() for folder in folders):
        raise SystemExit("usage: python benchmarks/readme_table.py [--write] [FOLDER of results]")
    found = checks_in(Path(folders[0])) if folders else {}
    lines = table(found, shown_in(readme.read_text()))
    if "--write" in argv:
        readme.write_text(with_table(readme.read_text(), lines))
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    return 0


def with_table(text: str, lines: Sequence[str]) -> str:
    """`text` with `lines` in place of the table that begins like them."""
    old = text.splitlines()
    start = old.index(lines[0])
    end = next(at for at in range(start, len(old)) if not old[at].startswith("|"))
    return "\n".join([*old[:start], *lines, *old[end:]]) + "\n"


def checks_in(folder: Path) -> dict[str, dict[str, float]]:
    """By label, the values of its result's checks by name."""
    results = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    return {
        label: {check["name"]: check["value"] for check in result["checks"]}
        for label, result in results.items()
    }


def rows() -> list[Row]:
    text = (HERE / "readme_table.toml").read_text()
    return [Row(**row) for row in tomllib.loads(text)["row"]]


def shown_in(text: str) -> dict[tuple[str, str], str]:
    """What a README's table says was measured, by what and command."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {(row[0], row[3]): row[1] for row in cells if len(row) == len(HEADINGS)}


def table(
    checks: Mapping[str, Mapping[str, float]], shown: Mapping[tuple[str, str], str] | None = None
) -> list[str]:
    """Its lines; `shown`: what is said now."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for row in rows():
        command = f"`{command_of(row.label)}`"
        kept = None if row.label in checks else (shown or {}).get((row.what, command))
        said = kept or figures(row, checks.get(row.label))
        cells = (row.what, said, row.against, command)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def figures(row: Row, values: Mapping[str, float] | None) -> str:
    """What the row says was measured; values are those of its label's checks, None where it has no
    result.
    """
    if values is None:
        return "not measured yet"
    for name in row.checks:
        if name not in values:
            raise SystemExit(f"{row.label}.json has no check {name!r}, which {row.what!r} shows")
    return _PLACE.sub(lambda at: format(values[at[1]], at[2]), row.measured)


def command_of(label: str) -> str:
    """What `reproduce.sh` runs under this label, as a user would enter it."""
    script = (HERE / "reproduce.sh").read_text()
    found = re.search(rf"^{re.escape(label)} +\| (.*)$", script, re.MULTILINE)
    assert found, label
    return f"dist-ml bench {found[1].strip()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
