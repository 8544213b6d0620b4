"""What was measured on this machine, kept between runs: one JSON file a name in the user's cache
folder.

Files are written whole, under a name of their own, and moved into place, so that a reader never
sees half of one, also where several nodes share the folder.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def folder() -> Path:
    """`$XDG_CACHE_HOME/dist_ml`, by default `~/.cache/dist_ml`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dist_ml"


def load(name: str) -> dict[str, Any] | None:
    """What was kept under `name`; None where nothing (or nothing readable) was."""
    try:
        kept = json.loads((folder() / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def store(name: str, values: Mapping[str, Any]) -> None:
    """Keep `values` under `name`, whole or not at all. A folder that can't be written is no error:
    it is measured again.
    """
    file, text = folder() / f"{name}.json", json.dumps(values, indent=1)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{name}.")
        try:
            with open(handle, "w") as stream:
                stream.write(text)
            Path(partial).replace(file)
        except OSError:  # no room, for example
            Path(partial).unlink()


def merge(name: str, section: str, values: Mapping[str, Any]) -> None:
    """Add `values` to `section` of what is kept under `name`. What another process added in the
    same instant may be lost, and is then measured again; the file stays whole.
    """
    kept = load(name) or {}
    before = kept.get(section)
    kept[section] = {**(before if isinstance(before, dict) else {}), **values}
    store(name, kept)
