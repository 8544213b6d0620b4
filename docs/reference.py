"""The reference of the public names, from their docstrings, by pdoc (`pip install dist_ml[docs]`):

python docs/reference.py FOLDER
"""

import sys
from pathlib import Path

import pdoc

import dist_ml

for name in dist_ml.__all__:  # pdoc documents what a module holds, and these are loaded when used
    setattr(dist_ml, name, getattr(dist_ml, name))
pdoc.pdoc("dist_ml", output_directory=Path(sys.argv[1]))
