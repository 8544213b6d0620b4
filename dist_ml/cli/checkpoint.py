"""`dist-ml checkpoint`: what checkpoints hold, whether they are sound, and their weights in and
out. Needs no MPI.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_ml.cli import terminal
from dist_ml.cli.terminal import Parser
from dist_ml.errors import DamageError, DataError

if TYPE_CHECKING:
    from dist_ml.checkpoint.reader import Checkpoint

_LONGEST_VALUE = 90  # characters of a header's entry that are shown


def main(argv: Sequence[str]) -> int:
    """0; for `verify`, 1 where a checkpoint is damaged, 2 where one can't be read."""
    options = _parser().parse_args(argv)
    status: int = options.run(options)
    return status


def _parser() -> Parser:
    parser = Parser(prog="dist-ml checkpoint", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, words: str, path: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=f"{words}.")
        made.set_defaults(run=run)
        made.add_argument("path", type=Path, help=path)
        made.add_argument("--debug", action="store_true", help="show tracebacks of errors, too")
        return made

    where = "a run, its folder checkpoints, or one step-N of it"
    show = command("show", _show, "Tell step, header, tensors and sizes of the newest", where)
    show.add_argument("--json", action="store_true", help="print the index as JSON")
    command("verify", _verify, "Read every byte, and compare checksums", where)
    export = command("export", _export, "Write the weights as a plain state dict", where)
    export.add_argument("target", type=Path, help="a file; with --format dcp a new folder")
    source = "a state dict as safetensors; with --format dcp the folder of a DCP checkpoint"
    made = command("import", _import, "Make a checkpoint of weights that a run starts from", source)
    made.add_argument("folder", type=Path, help="a new folder, which gets step-0")
    made.add_argument(
        "--prefix", default="", help="take only names that begin so, without it (model.)"
    )
    for with_format in (export, made):
        with_format.add_argument(
            "--format", choices=("safetensors", "dcp"), default="safetensors",
            help="dcp: that of torch.distributed.checkpoint (default: %(default)s)",
        )  # fmt: skip
    return parser


def _show(options: argparse.Namespace) -> int:
    from dist_ml.checkpoint.folder import find
    from dist_ml.checkpoint.reader import open_checkpoint

    checkpoint = open_checkpoint(find(options.path)[0])
    terminal.say(checkpoint.index.text() if options.json else "\n".join(_lines(checkpoint)))
    return 0


def _lines(checkpoint: "Checkpoint") -> list[str]:
    index = checkpoint.index
    num_bytes = sum(file.num_bytes for file in index.files.values())
    lines = [
        f"{checkpoint.path}",
        f"step      {index.step}",
        f"size      {num_bytes:,} bytes in {len(index.files)} files; {len(index.tensors)} tensors",
    ]
    for name, value in index.header.items():
        text = json.dumps(value)
        lines.append(f"{name:9} {text[:_LONGEST_VALUE]}{'…' * (len(text) > _LONGEST_VALUE)}")
    width = max(map(len, index.tensors), default=0)
    for name, tensor in index.tensors.items():
        stored = sum(box.num_bytes for box in tensor.boxes)
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        lines.append(
            f"  {name:{width}}  {tensor.dtype:4}  {shape:>14}  {stored:>14,} bytes in "
            f"{len(tensor.boxes)}"
        )
    return lines


def _verify(options: argparse.Namespace) -> int:
    from dist_ml.checkpoint.folder import find, read_index
    from dist_ml.checkpoint.verify import check_files

    status = 0
    for path in find(options.path):
        try:
            index = read_index(path)
            check_files(path, index)
            terminal.say(f"sound    {path}")
        except DamageError as error:
            status = max(status, 1)
            terminal.say(f"damaged  {path}: {error}")
        except DataError as error:
            status = error.exit_status
            terminal.say(f"unknown  {path}: {error}")
    return status


def _export(options: argparse.Namespace) -> int:
    from dist_ml.checkpoint import state_dict
    from dist_ml.checkpoint.folder import find
    from dist_ml.checkpoint.reader import open_checkpoint
    from dist_ml.checkpoint.verify import check_files

    checkpoint = open_checkpoint(find(options.path)[0])
    check_files(checkpoint.path, checkpoint.index)
    if options.format == "dcp":
        from dist_ml.checkpoint import torch_dcp

        state = state_dict.weights_of(checkpoint)
        torch_dcp.write(state, options.target)
        count = len(state)
    else:
        count = state_dict.export_weights(checkpoint, options.target)
    terminal.say(f"{count} tensors of {checkpoint.path} are in {options.target}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from dist_ml.checkpoint import state_dict

    if options.format == "dcp":
        from dist_ml.checkpoint import torch_dcp

        state = torch_dcp.read(options.path, options.prefix)
    else:
        state = {
            name.removeprefix(options.prefix): tensor
            for name, tensor in state_dict.read_state_dict(options.path).items()
            if name.startswith(options.prefix)
        }
    header = {"imported": str(options.path)}
    made = state_dict.import_weights(state, options.folder, header)
    terminal.say(f"{len(state)} tensors of {options.path} are in {made}")
    return 0
