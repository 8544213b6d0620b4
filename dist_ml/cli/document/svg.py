"""matplotlib figures as elements of an HTML page: text stays text, and what would be black takes
the colour of the page's text, so that it can be read on dark pages, too.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_REFERENCE = re.compile(r"url\(#")
_NOT_SAID = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Any, name: str, label: str) -> str:
    """The figure as an `svg` element. Its ids begin with `name`, since a page's must be unique;
    `label`, escaped, is what is read to who doesn't see it.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata=_NOT_SAID)
    root = ElementTree.fromstring(drawn.getvalue())
    for element in [*root.findall(f"{_SVG}metadata")]:
        root.remove(element)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {
            key.removeprefix(_LINK): _adapted(key, value, name)
            for key, value in element.attrib.items()
        }
    size = root.attrib["viewBox"]
    inside = "".join(ElementTree.tostring(child, "unicode") for child in root)
    return f'<svg viewBox="{size}" role="img" aria-label="{label}">{inside}</svg>'


def _adapted(key: str, value: str, name: str) -> str:
    """An attribute's value, with the ids that it makes or means, and without black."""
    if key == "id":
        return f"{name}-{value}"
    if key == f"{_LINK}href":
        return value.replace("#", f"#{name}-", 1)
    return _REFERENCE.sub(f"url(#{name}-", value).replace("#000000", "currentColor")


@contextmanager
def page_style() -> Iterator[None]:
    """Within the block figures are drawn and written for pages of any colour; at its end they are
    closed.
    """
    import matplotlib
    from matplotlib import pyplot

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "dist_ml"}
    style |= {"legend.frameon": False, "figure.max_open_warning": 0}
    with matplotlib.rc_context(style):
        try:
            yield
        finally:
            pyplot.close("all")
