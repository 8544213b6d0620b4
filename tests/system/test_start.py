"""What starting a program costs: imports that wait until they are needed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "program", ["import dist_ml", "from dist_ml.cli.main import main; assert main(['--help']) == 0"]
)
def test_light_start(program: str) -> None:
    """No torch, numpy or MPI before they are needed; what makes `dist-ml --help` quick."""
    names = ("torch", "numpy", "mpi4py", "hydra", "rich", "matplotlib")
    heavy = f"{{name for name in {names} if name in sys.modules}}"
    command = [
        sys.executable,
        "-c",
        f"import sys; {program}; found = {heavy}; assert not found, found",
    ]
    subprocess.run(command, check=True, timeout=20, capture_output=True)


def test_planning_needs_neither_torch_nor_mpi() -> None:
    program = "import sys, dist_ml.gemm.family; assert not {'torch', 'mpi4py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, capture_output=True)
