"""The layers of docs/architecture.md, read from the imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dist_ml"

# What each layer may import of the package, beside itself. A leaf may be used by all, and a layer's
# siblings are not in its line.
LEAVES = frozenset({"config", "errors", "partition", "placement"})
LEAVES |= {"measure", "launch", "counter_random", "compiled", "flight"}
_LOCAL = LEAVES | {"comm", "kernels"}
_PARTS = _LOCAL | {"nn", "gemm", "models", "datasets"}
_PARALLEL = frozenset({"data_parallel", "pipeline_parallel", "operator_parallel"})
BELOW: dict[str, frozenset[str]] = {
    **{leaf: frozenset() for leaf in LEAVES},
    "comm": LEAVES,
    "kernels": LEAVES,
    "nn": _LOCAL,
    "gemm": _LOCAL,
    "models": _LOCAL | {"nn"},
    "datasets": _LOCAL,
    "data_parallel": _PARTS,
    "pipeline_parallel": _PARTS,
    "operator_parallel": _PARTS,
    "checkpoint": LEAVES | {"comm"},
    "trace": LEAVES | {"comm"},
    "train": _PARTS | _PARALLEL | {"checkpoint", "trace"},
    "bench": _PARTS
    | _PARALLEL
    | {
        "checkpoint",
        "comm_hooks",
        "process_group",
        "train",
        "plan",
    },  # it measures what train composes
    "networks": LEAVES,
    "plan": _PARTS | _PARALLEL | {"train", "networks"},  # what train would compose, and no more
    "experiment": LEAVES | {"comm", "train"},  # it starts runs and reads what they left
    "cli": _PARTS | _PARALLEL | {"checkpoint", "train", "plan", "bench", "experiment"},
    "process_group": LEAVES | {"comm"},
    "torch_backend": frozenset({"process_group", "script"}),
    "comm_hooks": LEAVES | {"comm", "data_parallel", "process_group"},
    "script": LEAVES | {"comm", "cli"},  # what users' scripts begin with, beside the command line
    "saving": LEAVES | {"comm", "checkpoint", "data_parallel"},
    "own_training": LEAVES | {"comm", "cli", "script", "train"},
}
# Leaves that stand on other leaves.
BELOW["config"] = frozenset({"errors"})
BELOW["launch"] = frozenset({"errors", "partition"})
BELOW["measure"] = frozenset({"errors", "config"})
BELOW["partition"] = BELOW["counter_random"] = frozenset({"errors"})
BELOW["compiled"] = frozenset({"errors", "launch"})  # which rank speaks
BELOW["flight"] = frozenset({"errors"})
BELOW["placement"] = frozenset({"errors", "partition"})
# Third-party packages that only these files or folders may import.
ONLY_IN = {
    "mpi4py": ("comm/mpi.py",),
    "hydra": ("cli/",),
    "omegaconf": ("cli/",),
    "antlr4": ("cli/",),
    "matplotlib": (
        "cli/plots.py",
        "cli/document/svg.py",
        "bench/plots.py",
        "experiment/plots.py",
    ),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that the file imports, wherever in it, with the line; also by
    `importlib.import_module("literal")`.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{file}:{node.lineno}: relative import; name the module in full"
            )
            module = node.module or ""
            yield from (
                (f"{module}.{alias.name}" if module == "dist_ml" else module, node.lineno)
                for alias in node.names
            )
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
        ):
            yield from (
                (str(word.value), node.lineno)
                for word in node.args
                if isinstance(word, ast.Constant)
            )


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(file: Path, layer: str) -> Iterator[str]:
    inside = file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name
    for module, line in imports_of(file):
        root, *rest = module.split(".")
        if (
            root == "dist_ml"
            and rest
            and rest[0] in BELOW
            and rest[0] != layer
            and rest[0] not in BELOW[layer]
        ):
            allowed = ", ".join(sorted(BELOW[layer])) or "nothing"
            yield f"{inside}:{line}: {layer} must not import {module}; below it: {allowed}"
        if root in ONLY_IN and not inside.startswith(ONLY_IN[root]):
            yield f"{inside}:{line}: {root} may only be imported in {' and '.join(ONLY_IN[root])}"


def test_arrows_run_one_way() -> None:
    layers = {file: layer_of(file) for file in FILES}
    unknown = {*layers.values()} - {*BELOW, "__init__", "__main__"}
    assert not unknown, (
        f"{unknown} have no place in the layers; give them one here and in docs/architecture.md"
    )
    found = [each for file, layer in layers.items() if layer in BELOW
             for each in violations(file, layer)]  # fmt: skip
    assert found == []


@pytest.mark.parametrize(
    ("layer", "line", "words"),
    [
        ("comm", "from dist_ml.train import trainer", "comm must not import dist_ml.train"),
        ("comm", "from dist_ml import cli", "comm must not import dist_ml.cli"),
        (
            "models",
            "import dist_ml.datasets.digits",
            "models must not import dist_ml.datasets.digits",
        ),
        ("errors", "from dist_ml import partition", "errors must not import dist_ml.partition"),
        (
            "train",
            "def f():\n    from dist_ml.bench import step",
            "train must not import dist_ml.bench",
        ),
        ("comm", "import mpi4py.MPI", "mpi4py may only be imported in comm/mpi.py"),
        (
            "train",
            "import importlib\nimportlib.import_module('omegaconf')",
            "omegaconf may only be imported in cli/",
        ),
    ],
)
def test_a_wrong_import_is_found(layer: str, line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert any(words in violation for violation in violations(file, layer))
