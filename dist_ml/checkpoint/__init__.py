"""Checkpoints as boxes over named global tensors: written by any ranks, read by any others.

`writer.save` and `async_saver.AsyncSaver` write, `reader.newest` and `reader.Checkpoint` read. The
form on disk, what is guaranteed and what it costs: docs/checkpoints.md.
"""
