"""`dist-ml bench allreduce_words`: do the words and messages that pass between ranks equal each
algorithm's formula, on any number of ranks?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_ml.bench.bench import Bench
from dist_ml.bench.counting_transport import Seen, counted
from dist_ml.bench.form import Check, Record, Result
from dist_ml.bench.worlds import Worlds
from dist_ml.comm.allreduce import family
from dist_ml.comm.allreduce.base import Allreduce
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
    return Result("allreduce_words", records, word_checks(records, config.divisible))


def word_checks(records: Sequence[Record], divisible: int) -> list[Check]:
    """Stated is the formula, seen what passed below the ledger: apart from one another, so that
    moving more than was said fails. What was not seen is left out, but some must have been.
    """
    between = [record for record in records if record["ranks"] > 1]
    seen = [record for record in between if record["seen words"] is not None]
    flat = [record for record in between if record["algorithm"] in _FLAT]
    bounds = [
        record["seen words"] / (2 * divisible * (record["ranks"] - 1))
        for record in seen
        if record["algorithm"] in _FLAT and record["n"] == divisible * record["ranks"]
    ]
    unlike = sum(record["unlike"] for record in seen)
    wrong = sum(record["wrong"] for record in records)
    checks = [
        Check("ranks whose words or messages differ from those seen", unlike, 0, "lower"),
        Check("ranks whose sums differ from the exact ones", wrong, 0, "lower"),
    ]
    if flat:
        share = sum(record["algorithm"] in _FLAT for record in seen) / len(flat)
        checks.append(Check("share of message-based calls that were seen", share, 1.0, "higher"))
    if bounds:
        checks += [
            Check("seen words over 2n(P-1)/P where P divides n", max(bounds), 1.0, "lower"),
            Check("the least of them", min(bounds), 1.0, "higher"),
        ]
    return checks


def measure(comm: Communicator, arguments: Mapping[str, Any]) -> list[Record]:
    """A row an algorithm and size: words and messages of the rank with most, as stated and as seen
    (None where MPI's own collective or shared memory moved them); and on how many ranks either the
    ledger or the formula is not what was seen.
    """
    rows: list[Record] = []
    for name in arguments["algorithms"]:
        own, seen = counted(comm)
        reduce = family.make(name, own)
        rows += [_one(comm, name, reduce, own, seen, n) for n in arguments["sizes"]]
        reduce.free()
    return rows


def _one(
    comm: Communicator, name: str, reduce: Allreduce, own: Communicator, seen: Seen, n: int
) -> Record:
    x = np.arange(n, dtype=np.float64) % 1000 + comm.rank
    exact = (np.arange(n) % 1000) * comm.size + comm.size * (comm.size - 1) // 2
    entered, passed = _ledger(own), seen.words()
    reduce(x)
    ledger = _minus(_ledger(own), entered)
    moved, stated = _minus(seen.words(), passed), reduce.words(n, x.itemsize)
    unlike = moved != stated or moved != ledger
    told = (stated, moved, seen.whole, unlike, bool((x != exact).any()))
    found = comm.allgather_objects(told)
    whole = all(each[2] for each in found)
    return {
        "ranks": comm.size,
        "algorithm": name,
        "n": n,
        "stated words": max(each[0].sent for each in found),
        "seen words": max(each[1].sent for each in found) if whole else None,
        "messages": max(each[0].messages for each in found),
        "unlike": sum(each[3] for each in found) if whole else 0,
        "wrong": sum(each[4] for each in found),
    }


def _ledger(comm: Communicator) -> Words:
    total = comm.traffic.total()
    return Words(total.words_sent, total.words_received, total.messages)


def _minus(after: Words, before: Words) -> Words:
    return Words(*(now - then for now, then in zip(after, before, strict=True)))


BENCH = Bench(
    "words and messages of the allreduce family against their formulas",
    AllreduceWordsBench,
    run,
    {"allreduce_words": measure},
    ranks=2,
)
