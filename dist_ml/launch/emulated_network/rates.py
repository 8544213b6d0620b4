"""Rates of links, as `tc` writes them."""

from dist_ml.errors import MachineError

_UNITS = {"gbit": 1e9, "mbit": 1e6, "kbit": 1e3}


def bits_per_second(rate: str) -> float:
    """Of a rate: 1gbit, 100mbit, 500kbit."""
    for unit, factor in _UNITS.items():
        number = rate.removesuffix(unit)
        if number != rate and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return float(number) * factor
    raise MachineError(f"rate={rate} is not a rate; write it as 1gbit, 100mbit or 500kbit")
