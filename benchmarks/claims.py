"""Which claims hold: a line for each check of the results in a folder, held or missed.

    python benchmarks/claims.py FOLDER

Reads the LABEL.json files that `dist-ml bench --json` wrote, and writes the list to claims.md
beside them. The status is 1 where a claim is missed or a benchmark left no result.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIGNS = {"lower": "≤", "higher": "≥"}
MACHINE = ("date", "commit", "processor", "cores", "memory_bytes", "load", "system")


def main(argv: Sequence[str]) -> int:
    """Print and write the list."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        raise SystemExit("usage: python benchmarks/claims.py FOLDER, that holds results")
    folder = Path(argv[0])
    results = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    absent = sorted({file.stem for file in folder.glob("*.txt")} - set(results))
    lines = [*machine(results), *claims(results), *(f"- {name}: left no result" for name in absent)]
    (folder / "claims.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    missed = any(not check["passed"] for each in results.values() for check in each["checks"])
    return 1 if missed or absent or not results else 0


def machine(results: dict[str, Any]) -> list[str]:
    """What they were measured on, and when: a resumed folder may hold several commits."""
    lines = []
    for name in MACHINE:
        values = {result["environment"].get(name) for result in results.values()} - {None}
        told = sorted(values)
        if len(told) > 2 and name in ("date", "load"):
            told = [f"{told[0]} to {told[-1]}"]
        lines += [f"{name}: {', '.join(map(str, told))}"] if told else []
    return [*lines, ""] if lines else []


def claims(results: dict[str, Any]) -> list[str]:
    """A line a check."""
    return [
        f"- {label}: {check['name']}: {check['value']:.4g} {SIGNS[check['better']]} "
        f"{check['limit']:.4g}, {'held' if check['passed'] else 'MISSED'}"
        for label, result in results.items()
        for check in result["checks"]
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
