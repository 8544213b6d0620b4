"""A document as one HTML page that needs nothing beside it: no scripts, no requests, styles and
pictures within. Everything that isn't markup is escaped here.
"""

from html import escape

from dist_ml.cli.document.parts import Bullets, Document, Folded, Paragraph, Part, Picture, Section
from dist_ml.cli.document.style import STYLE
from dist_ml.cli.document.svg import inline_svg
from dist_ml.experiment.markdown_table import Table, printable

# A browser that honours it asks for nothing and runs nothing, whatever a page were made to hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(document: Document) -> str:
    """The page's whole text."""
    links = [
        f'<a href="#s{number}">{_text(section.title)}</a>'
        for number, section in enumerate(document.sections, 1)
    ]
    sections = [_section(section, number) for number, section in enumerate(document.sections, 1)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(document.title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{_text(document.title)}</h1>",
            f"<p>{_text(document.about)}</p></header>",
            f"<nav>{' '.join(links)}</nav>",
            "<main>",
            *sections,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _section(section: Section, number: int) -> str:
    parts = "\n".join(_part(part, section.title) for part in section.parts)
    return f'<section id="s{number}">\n<h2>{_text(section.title)}</h2>\n{parts}\n</section>'


def _part(part: Part, title: str) -> str:
    match part:
        case Paragraph(text):
            return f"<p>{_text(text)}</p>"
        case Bullets(lines):
            return "\n".join(["<ul>", *(f"<li>{_text(line)}</li>" for line in lines), "</ul>"])
        case Folded(name, table):
            folded = _table(table, name)
            return f"<details><summary>{_text(name)}</summary>\n{folded}\n</details>"
        case Picture(name, caption, figure):
            drawn = inline_svg(figure, name, escape(printable(caption)))
            return _scrolled(drawn, caption, "picture")
        case Table():
            return _table(part, title)


def _table(table: Table, title: str) -> str:
    """The first cell of a row is its header, which stays in sight."""
    kinds = [' class="number"' if numeric else "" for numeric in table.numeric]
    heads = "".join(
        f'<th scope="col"{kind}>{_text(header)}</th>'
        for header, kind in zip(table.headers, kinds, strict=True)
    )
    lines = [f"<table>\n<thead><tr>{heads}</tr></thead>", "<tbody>"]
    for row in table.rows:
        first, *others = ((_text(cell), kind) for cell, kind in zip(row, kinds, strict=True))
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in others)
        lines.append(f'<tr><th scope="row"{first[1]}>{first[0]}</th>{cells}</tr>')
    return _scrolled("\n".join([*lines, "</tbody>\n</table>"]), title, "table")


def _scrolled(content: str, label: str, kind: str) -> str:
    """In a box of its own that scrolls where the screen is narrower, by keys too."""
    return (
        f'<div class="{kind}" role="region" aria-label="{_text(label)}" tabindex="0">\n'
        f"{content}\n</div>"
    )


def _text(text: str) -> str:
    return escape(printable(text))
