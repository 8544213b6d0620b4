"""`python -m dist_ml` is the `dist-ml` command."""

import sys

from dist_ml.cli.main import main

sys.exit(main(sys.argv[1:]))
