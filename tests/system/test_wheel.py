"""From the wheel, in an environment that has never seen this checkout, to the README's script on
two ranks.
"""

import os
import re
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 150.0
BEFORE = """
import torch

class MyModel(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 2)
        torch.nn.init.ones_(self.weight)

torch.manual_seed(0)
points = torch.randn(1000, 5)
classes = (points.sum(1) > 0).long()
dataset = torch.utils.data.TensorDataset(points, classes)
"""
AFTER = """
torch.manual_seed(0)
first, last = (torch.nn.functional.cross_entropy(m(points), classes) for m in (MyModel(), model))
print(f"{last / first:.3f} on rank {mesh.world.rank} of {mesh.world.size}, by {dist_ml.__file__}")
"""


BUILDING = dict(os.environ)
INSTALLED = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def command(*words: object, cwd: Path, environment: dict[str, str] = INSTALLED) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=LIMIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fresh_environment(folder: Path) -> Path:
    """A Python without dist_ml, which borrows what the wheel depends on from this one (no network):
    in a path file only folders count, so an editable dist_ml there isn't seen.
    """
    command(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    python = folder / "bin" / "python"
    own = command(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=ROOT).strip()
    Path(own, "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    (folder / "mpi").symlink_to(Path(sys.prefix, "mpi"))
    return python


def test_the_readme_script_trains_from_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds the wheel: pip install hatchling")
    start = time.monotonic()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "dist"]
    command(*pip, *build, cwd=tmp_path, environment=BUILDING)
    (wheel,) = (tmp_path / "dist").glob("dist_ml-*.whl")
    built = time.monotonic()
    python = fresh_environment(tmp_path / "fresh")
    command(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    installed = time.monotonic()
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "script.py").write_text(BEFORE + code + AFTER)
    launch = [python.with_name("dist-ml"), "launch", "-n", 2, "--time-limit", 100]
    shown = command(*launch, "python", "script.py", cwd=tmp_path)
    trained = time.monotonic()
    for rank in range(2):
        (ratio,) = re.findall(rf"([\d.]+) on rank {rank} of 2", shown)
        assert float(ratio) < 0.98
    assert shown.count(str(tmp_path / "fresh")) == 2
    print(  # noqa: T201 - seen with pytest -s
        f"wheel built in {built - start:.1f} s, installed in {installed - built:.1f} s, "
        f"trained on 2 ranks in {trained - installed:.1f} s"
    )
