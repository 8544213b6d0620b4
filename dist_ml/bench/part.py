"""One rank of a world that a benchmark started: `python -m dist_ml.bench.part NAME ARGUMENTS
RESULT_FILE`.
"""

import json
import sys
import traceback
from pathlib import Path

from dist_ml.bench.benches import PARTS
from dist_ml.comm.mpi import world
from dist_ml.launch import stacks


def main(name: str, arguments: str, result_file: str) -> None:
    """Run the part; rank 0 writes what it returned. A failure on one rank ends all."""
    stacks.arm()
    comm = world()
    try:
        result = PARTS[name](comm, json.loads(arguments))
        if comm.rank == 0:
            Path(result_file).write_text(json.dumps(result))
        comm.barrier()
    except BaseException:
        sys.stderr.write(f"rank {comm.rank}:\n{traceback.format_exc()}")
        sys.stderr.flush()
        comm.abort(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
