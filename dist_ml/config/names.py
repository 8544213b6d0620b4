"""Names that a key accepts are those that the family's dict holds; an unknown one lists them."""

from collections.abc import Iterable
from difflib import get_close_matches

from dist_ml.errors import ConfigError

OWN = "own"  # in no family: the model, or the samples, that a user's program hands in


def require_one_of(key: str, value: str, names: Iterable[str]) -> None:
    """`ConfigError` unless `value` is one of `names`; it lists them, and the nearest."""
    known = list(names)
    if value in known:
        return
    nearest = get_close_matches(value, known, 1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise ConfigError(f"{key}={value} is not one of {', '.join(known)}{hint}")
