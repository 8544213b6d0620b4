"""What a report says, whatever it is written in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dist_ml.experiment.markdown_table import Table


@dataclass(frozen=True)
class Paragraph:
    """A line of text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Lines of text, one below the other."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """A table that is shown when it is asked for, where the form can do that."""

    title: str
    table: Table


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure; `name` is a file's stem, the only one of its document."""

    name: str
    caption: str
    figure: Any


Part: TypeAlias = Paragraph | Bullets | Table | Folded | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Document:
    """A whole report; `about`: what it is of, in a line."""

    title: str
    about: str
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        parts = (part for section in self.sections for part in section.parts)
        return [part for part in parts if isinstance(part, Picture)]
