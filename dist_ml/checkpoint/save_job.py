"""One save, in its parts: what all ranks do together, and between that each rank's work on files,
which a thread may do because it communicates nothing.

    SaveJob()   together: who writes what; the first rank makes step-N.tmp
    write       files: this rank's file
    gather      together: did all write theirs? Their checksums
    commit      files, on the first rank: index, name, COMMIT, and what need not be kept
    finish      together: was it committed?
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_ml.checkpoint import folder as folders
from dist_ml.checkpoint import index as indices
from dist_ml.checkpoint import plan, tensor_file
from dist_ml.checkpoint.files import Files
from dist_ml.checkpoint.folder import Keep
from dist_ml.checkpoint.piece import Piece
from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import DataError, DistMLError

log = logging.getLogger(__name__)


class SaveJob:
    """A save of `pieces` as checkpoint `step` of `folder`. All arguments but `pieces` are the same
    on all ranks; the header is JSON. `own` are the pieces that this rank writes, in its file's
    order.

    A `DataError` (a full disk, a folder that can't be written, a fault in a thread) is raised by
    `gather` or `finish`, on all ranks; what is committed is never touched by it.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        pieces: Sequence[Piece],
        header: Mapping[str, Any],
        comm: Communicator,
        keep: Keep,
        files: Files,
    ) -> None:
        self._folder, self._step, self._header = folder, step, header
        self._comm, self._keep, self._files = comm, keep, files
        with raise_on_all_ranks(comm):
            held = [plan.held_box(piece) for piece in pieces]
        self._held = comm.allgather_objects(held)
        self._writers = plan.plan(self._held)
        writer = self._writers[comm.rank]
        self._layout = writer.layout
        self.own = [pieces[position] for position in writer.positions]
        self._sums: tuple[str, ...] = ("",)
        self._all_sums: list[Sequence[str]] = []
        self._failure: BaseException | None = None
        from_root(comm, self._begin)

    def write(self, values: Iterable[memoryview]) -> None:
        """Write this rank's file: the bytes of `own`, in order."""
        if not self.own:
            return
        path = folders.unfinished_folder(self._folder, self._step)
        path /= indices.file_name(self._comm.rank)
        try:
            self._sums = tensor_file.write(self._files, path, self._layout.header, values)
        except BaseException as error:  # in a thread it would be lost
            self._failure = self._in_words(error)

    def gather(self) -> None:
        """Collective, after `write`: raises what failed on any rank."""
        self._raise_failure()
        self._all_sums = self._comm.allgather_objects(self._sums)

    def commit(self) -> None:
        """Commit, on the first rank; nothing elsewhere."""
        if self._comm.rank != 0:
            return
        try:
            index = indices.make(
                self._step, self._header, self._held, self._writers, self._all_sums
            )
            folders.commit(self._files, self._folder, index)
            self._retain()
        except BaseException as error:
            self._failure = self._in_words(error)

    def finish(self) -> Path:
        """Collective, after `commit`: the checkpoint's folder."""
        self._raise_failure()
        return self._folder / f"step-{self._step}"

    def _retain(self) -> None:
        try:
            folders.retain(self._files, self._folder, self._step, self._keep)
        except (OSError, DataError) as error:
            log.warning("an older checkpoint than %d can't be removed: %s", self._step, error)

    def _begin(self) -> None:
        try:
            folders.begin(self._files, self._folder, self._step)
        except OSError as error:
            raise self._in_words(error) from error

    def _raise_failure(self) -> None:
        try:
            with raise_on_all_ranks(self._comm):
                if self._failure is not None:
                    raise self._failure
        except DataError:  # no rank writes any more: give back the room
            if self._comm.rank == 0:
                with contextlib.suppress(OSError):
                    folders.abandon(self._files, self._folder, self._step)
            raise

    def _in_words(self, error: BaseException) -> BaseException:
        """What all ranks can be told; an end of the process stays what it is."""
        if isinstance(error, DistMLError) or not isinstance(error, Exception):
            return error
        if isinstance(error, OSError):
            where, reason = error.filename or self._folder, error.strerror or str(error)
            reason += "; the folder must be writable, have room, and be the same for all ranks"
        else:
            where, reason = self._folder, f"{type(error).__name__}: {error}"
        words = DataError(f"checkpoint {self._step} can't be saved in {where}: {reason}")
        words.__cause__ = error
        return words
