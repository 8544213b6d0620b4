"""Published pipeline schedules, each a pure function from numbers to a `Schedule`."""
