"""A timeline of all ranks, in the form that Perfetto and Chrome show (docs/timeline.md)."""
