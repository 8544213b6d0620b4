"""Taking a run folder, so that nobody else trains in it: a new one, or one to go on in."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from dist_ml.comm.agreement import from_root, raise_on_all_ranks
from dist_ml.comm.communicator import Communicator
from dist_ml.errors import ConfigError
from dist_ml.flight import record_file
from dist_ml.train import logs
from dist_ml.train.run_folder import RunFolder, write_whole


def create(path: str | Path, config: Mapping[str, Any], comm: Communicator) -> RunFolder:
    """Make the folder and `config.yaml` on rank 0, and start every rank's log in it. Collective.

    `ConfigError` on all ranks when the folder can't be written or holds a run already.
    """
    folder = RunFolder(Path(path).absolute())
    from_root(comm, lambda: make(folder, config))
    _start_logs(folder, comm)
    return folder


def reopen(
    path: str | Path, config: Mapping[str, Any], comm: Communicator, claimed: TextIO | None
) -> RunFolder:
    """The folder of a run that goes on: its configuration is the new one, and it has not ended yet.
    `claimed`: rank 0's log. Collective.

    `ConfigError` on all ranks when the folder can't be written.
    """
    folder = RunFolder(Path(path).absolute())

    def renew() -> None:
        try:
            folder.checkpoints.mkdir(exist_ok=True)
            write_whole(folder.config, yaml.safe_dump(dict(config), sort_keys=False))
            folder.summary.unlink(missing_ok=True)
            logs.forget_failure(folder.path)
            record_file.forget(folder.log)
        except OSError as error:
            raise ConfigError(
                f"folder={folder.path} can't be written: {error.strerror or error}; mend that, or "
                "copy it elsewhere"
            ) from error

    from_root(comm, renew)
    _start_logs(folder, comm, claimed)
    return folder


@contextlib.contextmanager
def claimed_log(path: str | Path, comm: Communicator) -> Iterator[TextIO | None]:
    """Within the block no other process trains in the run folder, if there is one: rank 0's log is
    locked. Collective; `ConfigError` on all ranks where another process has it.
    """
    folder = RunFolder(Path(path).absolute())
    claims: list[TextIO] = []

    def claim() -> None:
        try:
            if folder.log.is_dir():
                claims.append(logs.claim(folder.path))
        except OSError as error:
            busy = isinstance(error, BlockingIOError)
            raise ConfigError(
                f"folder={folder.path} is trained in by another process now; wait for it, or end it"
                if busy
                else f"folder={folder.path} can't be written: {error.strerror or error}"
            ) from error

    from_root(comm, claim)
    try:
        yield claims[0] if claims else None
    finally:
        for stream in claims:
            logs.release(stream)


def _start_logs(folder: RunFolder, comm: Communicator, claimed: TextIO | None = None) -> None:
    with raise_on_all_ranks(comm):
        try:
            if not folder.log.is_dir():  # a node that doesn't share the file system has its own
                folder.log.mkdir(parents=True, exist_ok=True)
            logs.start(folder.path, comm.rank, claimed)
            comm.recorder.folder = folder.log
        except OSError as error:
            raise ConfigError(
                f"folder={folder.path} can't hold this rank's log: {error.strerror or error}; "
                "choose another"
            ) from error


def make(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """The run that makes `log/` has the folder: of several that start at once, one does."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if folder.config.exists():
            raise _taken(folder)
        folder.log.mkdir()
        folder.checkpoints.mkdir(exist_ok=True)
        write_whole(folder.config, yaml.safe_dump(dict(config), sort_keys=False))
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.log.is_dir():
            raise _taken(folder) from None
        raise ConfigError(
            f"folder={folder.path} can't be written: {error.strerror or error}; choose another "
            "folder"
        ) from error


def _taken(folder: RunFolder) -> ConfigError:
    return ConfigError(
        f"folder={folder.path} holds a run already; go on with it by resume=auto, or choose "
        "another folder"
    )
