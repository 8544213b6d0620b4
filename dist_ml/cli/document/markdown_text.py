"""A document as Markdown, with pictures in files beside it."""

from pathlib import Path
from typing import Any

from dist_ml.cli.document.parts import Bullets, Document, Folded, Paragraph, Part, Picture
from dist_ml.experiment.markdown_table import Table, escaped, markdown_table

_DPI = 120


def to_markdown(document: Document, stem: str) -> tuple[str, dict[str, Any]]:
    """The text, and the figures that it shows by file name; these begin with `stem`."""
    blocks = [f"# {escaped(document.title)}", escaped(document.about)]
    for section in document.sections:
        blocks.append(f"## {escaped(section.title)}")
        blocks += [_block(part, stem) for part in section.parts]
    figures = {_file(picture, stem): picture.figure for picture in document.pictures}
    return "\n\n".join(blocks) + "\n", figures


def save(figure: Any, file: Path) -> None:
    """As a PNG file; `OSError` where it can't be written."""
    figure.savefig(file, dpi=_DPI)


def _block(part: Part, stem: str) -> str:
    match part:
        case Paragraph(text):
            return escaped(text)
        case Bullets(lines):
            return "\n".join(f"- {escaped(line)}" for line in lines)
        case Folded(title, table):
            return f"### {escaped(title)}\n\n{markdown_table(table)}"
        case Picture(_, caption, _):
            return f"![{escaped(caption)}](<{_file(part, stem)}>)"
        case Table():
            return markdown_table(part)


def _file(picture: Picture, stem: str) -> str:
    return f"{stem}_{picture.name}.png"
