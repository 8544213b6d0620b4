"""A project of a user's own, trained by the whole of `dist-ml train`: run folder, checkpoints,
resuming, meshes, reports.

dist-ml launch -n 4 python examples/own_project/main.py epochs=20 mesh.pipeline=2
"""

import sys
from pathlib import Path

from models import network
from samples import rings

import dist_ml

conf = Path(__file__).parent / "conf"
dist_ml.fit(network(), rings(), config="rings", config_dir=conf, overrides=sys.argv[1:])
