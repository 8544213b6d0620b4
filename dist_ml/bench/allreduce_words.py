"""`dist-ml bench allreduce_words`: do words and messages in the ledger equal each algorithm's
formula, on any number of ranks?
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.allreduce import family
from dist_ml.comm.communicator import Communicator
from dist_ml.comm.traffic import Words

_FLAT = (
    "ring",
    "rabenseifner",
)  # between ranks by messages, so that the published bound is theirs as well


@dataclass(frozen=True)
class AllreduceWordsBench:
    """What to reduce."""

    worlds: tuple[int, ...]  # numbers of ranks
    algorithms: tuple[str, ...]
    sizes: tuple[int, ...]  # elements
    divisible: int  # elements a rank of one more size, which is divisible by the number of ranks


def run(config: AllreduceWordsBench, worlds: Worlds) -> Result:
    records: list[Record] = []
    for ranks in config.worlds:
        arguments = {
            "algorithms": config.algorithms,
            "sizes": [*config.sizes, config.divisible * ranks],
        }
        records += worlds.measure("allreduce_words", arguments, ranks=ranks)
    unequal = sum(record["unequal"] for record in records)
    wrong = sum(record["wrong"] for record in records)
    bounds = [
        record["words"] / (2 * config.divisible * (record["ranks"] - 1))
        for record in records
        if record["algorithm"] in _FLAT
        and record["ranks"] > 1
        and record["n"] == config.divisible * record["ranks"]
    ]
    return Result(
        "allreduce_words",
        records,
        [
            Check("calls whose words or messages differ from the formula", unequal, 0, "lower"),
            Check("calls whose sums differ from the exact ones", wrong, 0, "lower"),
            Check("words over 2n(P-1)/P where P divides n", max(bounds, default=1.0), 1.0, "lower"),
        ],
    )


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[Record]:
    """A row an algorithm and size: the most words and messages of a rank, and on how many ranks
    they are not the formula's.
    """
    rows: list[Record] = []
    for name in arguments["algorithms"]:
        reduce = family.make(name, comm)
        for n in arguments["sizes"]:
            x = np.arange(n, dtype=np.float64) % 1000 + comm.rank
            exact = (np.arange(n) % 1000) * comm.size + comm.size * (comm.size - 1) // 2
            before = comm.traffic.snapshot()
            reduce(x)
            tallies = comm.traffic.since(before).values()
            sent = sum(tally.words_sent for tally in tallies)
            received = sum(tally.words_received for tally in tallies)
            messages = sum(tally.messages for tally in tallies)
            formula = reduce.words(n, x.itemsize)
            own = (
                sent,
                messages,
                Words(sent, received, messages) != formula,
                bool((x != exact).any()),
            )
            found = comm.allgather_objects(own)
            row = {
                "ranks": comm.size,
                "algorithm": name,
                "n": n,
                "words": max(each[0] for each in found),
            }
            more = {"messages": max(each[1] for each in found)}
            rows.append(
                {
                    **row,
                    **more,
                    "unequal": sum(each[2] for each in found),
                    "wrong": sum(each[3] for each in found),
                }
            )
        reduce.free()
    return rows


BENCH = Bench(
    "words and messages of the allreduce family against their formulas",
    AllreduceWordsBench,
    run,
    {"allreduce_words": measure},
    ranks=2,
)
