"""One rank of a program that counts what it asks of the file system, from its first import to its
end: `python -m dist_ml.bench.counted_start FOLDER MODULE ARGUMENTS…` runs MODULE as `python -m`
does, and leaves `FOLDER/RANK.json`.

Python's audit events are counted: opened files, made and listed folders. Asking for a file's state
(stat) is no event, and what libraries of C open isn't seen.
"""

import atexit
import json
import os
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from dist_ml.launch.stacks import rank

MODULES, CONFIGURATIONS, OTHERS = "modules opened", "configurations opened", "other files opened"
MADE, LISTED = "folders made", "folders listed"
COUNTED = (MODULES, CONFIGURATIONS, OTHERS, MADE, LISTED)

_FOLDER_EVENTS = {"os.mkdir": MADE, "os.listdir": LISTED, "os.scandir": LISTED}
_INSTALLED = (sys.prefix, sys.base_prefix)  # modules, and what packages say of themselves
# Each node's own. TMPDIR may differ from that of a launcher that named folders for its ranks.
_NOT_SHARED = ("/proc/", "/sys/", "/dev/", "/tmp/", f"{tempfile.gettempdir()}/")


def kind_of(event: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    """Under what an audit event is counted; None for one that isn't: about a node's own files, but
    for those in `folder`, or about none.
    """
    if event != "open" and event not in _FOLDER_EVENTS:
        return None
    if isinstance(arguments[0], int):  # a descriptor
        return None
    path = os.path.abspath(os.fsdecode(arguments[0] or "."))
    if path.startswith(_NOT_SHARED) and not path.startswith(f"{folder}/"):
        return None
    if event != "open":
        return _FOLDER_EVENTS[event]
    if path.endswith(".yaml"):
        return CONFIGURATIONS
    return MODULES if path.startswith(_INSTALLED) or path.endswith((".py", ".pyc")) else OTHERS


def main(folder: str, module: str, *arguments: str) -> None:
    """Count, and run the module."""
    counts: Counter[str] = Counter()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if (kind := kind_of(event, arguments, folder)) is not None:
            counts[kind] += 1

    def leave() -> None:
        text = json.dumps({name: counts[name] for name in COUNTED})
        Path(folder, f"{rank(os.environ)}.json").write_text(text)

    atexit.register(leave)
    sys.addaudithook(count)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
