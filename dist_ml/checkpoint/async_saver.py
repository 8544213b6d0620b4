"""Saving while the ranks compute."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.piece import Piece
from dist_ml.checkpoint.save_job import SaveJob
from dist_ml.checkpoint.tensor_file import bytes_of
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import MachineError

LIMIT_SECONDS = 600.0
_LOOK_SECONDS = 0.02  # between looks at the other ranks, while there is nothing to do but wait


class AsyncSaver:
    """Saves checkpoints of a run one after the other: each is copied in memory, and a thread
    writes the copy. All methods are collective; no thread communicates.

        save      copies                  the ranks go on; threads write files
        poll      have all written?       then the first rank's thread commits
        poll      committed?              then it says where

    Memory: what this rank writes, once, from the first save on. An error in a thread (a full disk)
    is raised on all ranks by the poll after all threads have ended; committed checkpoints are as
    they were, and the next save is tried like any other.
    """

    def __init__(
        self,
        folder: Path,
        comm: Communicator,
        keep: Keep | None = None,
        files: Files | None = None,
    ) -> None:
        self._folder, self._comm = folder, comm
        self._keep, self._files = keep or Keep(), files or Files()
        self._copy = torch.empty(0, dtype=torch.uint8)
        self._step = 0
        self._job: SaveJob | None = None
        self._next: Callable[[], Path | None] = lambda: None  # once all threads have ended
        self._thread = threading.Thread()

    def save(
        self,
        step: int,
        pieces: Sequence[Piece],
        header: Mapping[str, Any],
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        """Begin to save what `writer.save` would; the pieces' values may change when this returns.

        Waits for the former save, as `close` does, if that isn't committed.
        """
        self.close(limit_seconds)
        job = SaveJob(self._folder, step, pieces, header, self._comm, self._keep, self._files)
        values = self._snapshot(job)
        self._step, self._job = step, job
        self._start(lambda: job.write(values), self._gathered)

    def poll(self) -> Path | None:
        """At a step's border: take the save further. The checkpoint's folder, once, when it is
        committed.

        Cost while a save is under way: an allreduce of two integers.
        """
        return self._poll(late=False)

    def close(self, limit_seconds: float = LIMIT_SECONDS) -> Path | None:
        """Wait until the save under way, if any, is committed; its folder. `MachineError` on all
        ranks where that takes longer than the limit.
        """
        end, path = time.monotonic() + limit_seconds, None
        while self._job is not None:
            path = self._poll(late=time.monotonic() > end)
            if self._job is not None:
                self._thread.join(_LOOK_SECONDS)
        return path

    def _poll(self, late: bool) -> Path | None:
        if self._job is None:
            return None
        ended = np.array([not self._thread.is_alive(), not late], np.int32)
        self._comm.allreduce(ended, "min")
        if ended[0]:
            return self._next()
        if not ended[1]:
            error = MachineError(
                f"checkpoint {self._step} was not on the disk in time; does the file system of "
                f"{self._folder} hang? The checkpoints before it are as they were"
            )
            error.agreed = True
            raise error
        return None

    def _gathered(self) -> None:
        """All ranks have written: the first rank's thread commits."""
        job, self._job = self._job, None  # nothing is under way if this raises
        assert job is not None
        job.gather()
        self._job = job
        self._start(job.commit, self._finished)

    def _finished(self) -> Path:
        job, self._job = self._job, None
        assert job is not None
        return job.finish()

    def _start(self, work: Callable[[], None], then: Callable[[], Path | None]) -> None:
        self._next = then
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def _snapshot(self, job: SaveJob) -> list[memoryview]:
        """The values that this rank writes, copied one after the other into one buffer, which is
        used again.
        """
        num_bytes = sum(piece.values.nbytes for piece in job.own)
        if self._copy.numel() < num_bytes:
            self._copy = torch.empty(num_bytes, dtype=torch.uint8)
        start, parts = 0, []
        for piece in job.own:  # wider dtypes come first, so each part is aligned
            part = self._copy[start : start + piece.values.nbytes]
            part.view(piece.values.dtype).view(piece.values.shape).copy_(piece.values.detach())
            parts.append(bytes_of(part))
            start += piece.values.nbytes
        return parts
