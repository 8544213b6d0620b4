# Sourced by train.sh and test.sh: makes .venv with the package, the pinned versions and the MPI wheels, once.
#
#   set_up EXTRAS WHEELS...     as in: set_up plot,numba mpich
#
# A stamp holds what was asked for and a checksum of the files that decide the versions; it is written last, so an interrupted
# set-up is taken up again, and two set-ups at a time wait for each other. Needs Python 3.11+ with venv and pip; no MPI, no
# compiler, no root.

repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
environment=$repository/.venv
python=$environment/bin/python

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# A command named python3 may be older than a python3.12 beside it.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "dist_ml needs Python 3.11 or newer; found: $(python3 --version 2>&1 || true)." \
         "Install one, or name it: PYTHON=/path/to/python3.12 bash launch/train.sh"
}

make_environment() {
    local base
    base=$(find_python) || exit 1
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$base lacks venv or pip. On Debian and Ubuntu: apt-get install python3-venv; or name another: PYTHON=/path/to/python3"
    "$base" -m venv --clear "$environment" || fail "could not make $environment with $base -m venv"
}

# Does what is in .venv still run? A moved checkout or an upgraded system Python breaks its links.
environment_works() {
    [ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1
}

pinned() {
    grep -E "^$1==" "$repository/constraints.txt" || fail "constraints.txt names no version of $1"
}

install() {
    local extras=$1 wheel
    shift
    environment_works || make_environment
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --constraint "$repository/constraints.txt" --editable "$repository[$extras]" ||
        fail "pip could not install dist_ml[$extras]; see its message above"
    for wheel in "$@"; do
        install_mpi "$wheel"
    done
}

# The MPI wheels lie side by side under prefixes of their own, because both bring a bin/mpiexec. Each is installed under a
# temporary name first: what stands under its own name is whole.
install_mpi() {
    local prefix=$environment/mpi/$1 version
    version=$(pinned "$1") || exit 1
    [ "$(cat "$prefix/.version" 2>/dev/null)" = "$version" ] && return
    rm -rf "$prefix.part"
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --ignore-installed --prefix "$prefix.part" "$version" ||
        fail "pip could not install $version; see its message above"
    echo "$version" >"$prefix.part/.version"
    rm -rf "${prefix:?}"
    mv "$prefix.part" "$prefix"
}

is_set_up() {
    [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

set_up() {
    local stamp wanted arguments=$*
    stamp=$environment/.set-up-${arguments// /-}
    wanted="$repository $(cat "$repository/pyproject.toml" "$repository/constraints.txt" "${BASH_SOURCE[0]}" | cksum)"
    is_set_up && return
    exec 9<"$repository"
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_set_up; then
        echo "Setting up $environment (once; it takes some minutes) …" >&2
        install "$@"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    exec 9<&-
}
