"""How much of which tensor is sent: groups of ranges, and a density that falls during warm-up."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dist_ml.config.sparse import SparseConfig
from dist_ml.errors import ConfigError
from dist_ml.partition import Range

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DensityGroups:
    """Which ranges of the flat gradient are summed densely, and which sparsely at which density
    (None: the warm-up's).
    """

    dense: tuple[Range, ...]
    sparse: tuple[tuple[float | None, tuple[Range, ...]], ...]

    @property
    def num_dense(self) -> int:
        return sum(part.size for part in self.dense)

    def within(self, shard: Range) -> "DensityGroups":
        """The part of it inside `shard`, counted from the shard's start. Dense ranges are dropped:
        they are not sharded.
        """
        groups = []
        for density, ranges in self.sparse:
            inside = [part.intersect(shard) for part in ranges]
            moved = tuple(
                Range(part.start - shard.start, part.stop - shard.start)
                for part in inside
                if part.size
            )
            if moved:
                groups.append((density, moved))
        return DensityGroups((), tuple(groups))


def density_groups(
    names: Sequence[str],
    ranges: Sequence[Range],
    densities: Mapping[str, float],
    dense: Collection[str],
) -> DensityGroups:
    """The tensors named in `dense` are dense; the others join the group of the longest name prefix
    that fits. `ConfigError` for a prefix that fits none.
    """
    unused = [prefix for prefix in densities if not any(n.startswith(prefix) for n in names)]
    if unused:
        raise ConfigError(
            f"sparse.densities.{unused[0]} fits no parameter; their names begin with "
            + ", ".join(sorted({name.rpartition(".")[0] or name for name in names}))
        )
    summed: list[Range] = []
    groups: dict[str | None, list[Range]] = {}
    for name, part in zip(names, ranges, strict=True):
        if name in dense or not part.size:
            summed.append(part)
            continue
        fitting = [prefix for prefix in densities if name.startswith(prefix)]
        groups.setdefault(max(fitting, key=len, default=None), []).append(part)
    sparse = tuple(
        (densities[prefix] if prefix is not None else None, _joined(parts))
        for prefix, parts in groups.items()
    )
    return DensityGroups(_joined(summed), sparse)


class DensityWarmup:
    """The warm-up densities, each for so many steps, then the final one; every change is logged, so
    that none is hidden.
    """

    def __init__(self, config: SparseConfig) -> None:
        self._config = config
        self._last: float | None = None

    def at(self, step: int) -> float:
        """The density of a step, counted from 0."""
        phase = step // self._config.warmup_steps
        warmup = self._config.warmup_densities
        density = warmup[phase] if phase < len(warmup) else self._config.density
        if density != self._last:
            log.info(
                "step %d: density %g%s", step, density, " (warm-up)" if phase < len(warmup) else ""
            )
            self._last = density
        return density


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Ascending ranges, those that touch put together."""
    joined: list[Range] = []
    for part in sorted(ranges):
        if joined and joined[-1].stop == part.start:
            joined[-1] = Range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return tuple(joined)
