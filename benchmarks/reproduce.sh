#!/usr/bin/env bash
# Makes every table of benchmarks/ again, on this machine, into a dated folder.
#
#   bash benchmarks/reproduce.sh                    all of them: about an hour on 2 cores, left alone
#   bash benchmarks/reproduce.sh --long             and those that take long
#   bash benchmarks/reproduce.sh step selection     those whose label begins with one of these words
#   bash benchmarks/reproduce.sh --resume FOLDER    those that FOLDER lacks, into it (words may follow)
#   OUT=FOLDER bash benchmarks/reproduce.sh         the same; PYTHON=… another interpreter
#
# A benchmark leaves LABEL.json (every column, the machine, the checks) and LABEL.txt (as printed, 80
# columns wide) as soon as it is over, so that an interrupted run keeps what is finished. At the end,
# or when interrupted, claims.py lists which claims hold here. The status is 1 where one doesn't, or
# where a benchmark could not run.
set -u
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python}
out=${OUT:-runs/benchmarks/$(date +%Y-%m-%d_%H-%M-%S)}
include_long=
if [ "${1-}" = --long ]; then
    include_long=yes
    shift
fi
if [ "${1-}" = --resume ]; then
    [ -d "${2-}" ] || { echo "usage: reproduce.sh --resume FOLDER [WORD…], a folder that holds results" >&2; exit 2; }
    out=$2
    shift 2
fi
mkdir -p "$out" || exit 2
# what is tuned is tuned here and now, not remembered from a day when the machine was busy
XDG_CACHE_HOME=$(cd "$out" && pwd)/cache
export XDG_CACHE_HOME

# label | arguments of dist-ml bench
benchmarks='
reproduce-mpich     | reproduce --mpi mpich
reproduce-openmpi   | reproduce --mpi openmpi
same_numbers        | same_numbers
step                | step
step-kernel         | step kernel=auto rounds=7
models              | models
validation_loss     | validation_loss
kernel              | kernel
dataflow            | dataflow
memory              | memory
collectives-mpich   | collectives --mpi mpich
collectives-openmpi | collectives --mpi openmpi
allreduce-node      | allreduce
allreduce-1gbit     | allreduce network=emulated_1gbit worlds=3 rounds=2
allreduce_words     | allreduce_words
startup             | startup
trace               | trace
failures            | failures
overlap-node        | overlap
overlap-1gbit       | overlap network=1gbit ranks=4 rounds=5 steps=1
data_parallel       | data_parallel
torch_backend-node  | torch_backend
torch_backend-1gbit | torch_backend network=1gbit ranks=4 rounds=5 steps=1
torch_backend-100mbit | torch_backend network=100mbit ranks=4 rounds=3 steps=1
sharded             | sharded
bitwise             | bitwise
daso                | daso
selection           | selection
sparse              | sparse
sparse_scaling      | sparse_scaling
sparse_accuracy     | sparse_accuracy
sparse_curve        | sparse_curve
pipeline            | pipeline
pipeline_torch      | pipeline_torch
pipeline_validation | pipeline_validation
prediction          | prediction
choice              | choice
operator            | operator
operator-kernel     | operator train.kernel=auto
operator_words      | operator_words
operator_crossover  | operator_crossover
layouts             | layouts
checkpoint          | checkpoint
checkpoint_run      | checkpoint_run
kills               | kills
gemm                | gemm
gemm_words          | gemm_words
'
# takes as long as all of these, and no row of the README is of it
long='
allreduce-100mbit   | allreduce network=emulated_100mbit
'

wanted() { # is this label asked for?
    [ "$#" -eq 1 ] && return 0
    local label=$1 word
    shift
    for word in "$@"; do
        case $label in "$word"*) return 0 ;; esac
    done
    return 1
}

claims() { "$python" benchmarks/claims.py "$out"; }
trap 'claims; exit 130' INT TERM

echo "into $out"
while IFS='|' read -r label arguments; do
    label=${label// /}
    if [ -z "$label" ] || ! wanted "$label" "$@"; then continue; fi
    if [ -s "$out/$label.json" ]; then
        echo "== $label is there already"
        continue
    fi
    echo "== dist-ml bench$arguments"
    start=$SECONDS
    # shellcheck disable=SC2086 # several words are meant
    if COLUMNS=80 "$python" -m dist_ml bench $arguments --time-limit 1800 --json "$out/$label.part" \
        </dev/null >"$out/$label.txt" 2>&1; then
        mv "$out/$label.part" "$out/$label.json"
    else
        echo "   failed: see $out/$label.txt"
    fi
    grep -E ' (ok|FAILED)$' "$out/$label.txt" | sed 's/^/   /'
    echo "   $((SECONDS - start)) s"
done <<<"$benchmarks${include_long:+$long}"

claims
