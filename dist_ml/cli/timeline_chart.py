"""A timeline as text, a line a rank, for terminals of any width."""

from dist_ml.pipeline_parallel.dry_run import TimedAction, Timeline

_IDLE = "·"


def chart(timeline: Timeline, width: int) -> list[str]:
    """A line a rank: actions as kind and micro-batch (`F0`), padded with `-` to their length, and
    `·` where nothing runs. Where that is wider than `width`, kinds alone, in columns as long as
    the shortest action or, if need be, longer.
    """
    start = min((rank[0].start for rank in timeline.ranks if rank), default=0.0)
    stop = max((rank[-1].stop for rank in timeline.ranks if rank), default=0.0)
    names = [f"rank {number}" for number in range(len(timeline.ranks))]
    left = max(map(len, names), default=0) + 2
    room = max(10, width - left)
    shortest = min(
        (i.stop - i.start for rank in timeline.ranks for i in rank if i.stop > i.start),
        default=stop - start or 1.0,
    )
    unit = (stop - start) / shortest  # columns, with one for the shortest action
    longest = max((len(_label(i)) for rank in timeline.ranks for i in rank), default=1)
    if round(unit * longest) <= room:
        rows = [
            _labelled(rank, start, longest / shortest, round(unit * longest))
            for rank in timeline.ranks
        ]
    else:
        columns = min(room, round(unit))
        rows = [_kinds(rank, start, (stop - start) / columns, columns) for rank in timeline.ranks]
    return [f"{name:{left}}{row}" for name, row in zip(names, rows, strict=True)]


def _labelled(rank: tuple[TimedAction, ...], start: float, scale: float, columns: int) -> str:
    """`scale` columns a time unit."""
    row = [_IDLE] * columns
    for timed in rank:
        first, end = (round((time - start) * scale) for time in (timed.start, timed.stop))
        row[first:end] = _label(timed).ljust(end - first, "-")[: end - first]
    return "".join(row)


def _kinds(rank: tuple[TimedAction, ...], start: float, length: float, columns: int) -> str:
    """Each column, `length` time units, shows what runs at its middle."""
    row = [_IDLE] * columns
    place = 0
    for column in range(columns):
        middle = start + (column + 0.5) * length
        while place < len(rank) and rank[place].stop <= middle:
            place += 1
        if place < len(rank) and rank[place].start <= middle:
            row[column] = rank[place].action.kind
    return "".join(row)


def _label(timed: TimedAction) -> str:
    return f"{timed.action.kind}{timed.action.microbatch}"
