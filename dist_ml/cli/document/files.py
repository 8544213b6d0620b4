"""A report of runs and experiments, made and written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dist_ml import __version__
from dist_ml.cli.comparison import Row
from dist_ml.cli.document import experiments
from dist_ml.cli.document.html_page import to_html
from dist_ml.cli.document.markdown_text import save, to_markdown
from dist_ml.cli.document.parts import Document
from dist_ml.cli.document.runs import run_sections
from dist_ml.cli.document.svg import page_style
from dist_ml.errors import ConfigError
from dist_ml.launch.extras import install_command
from dist_ml.train.run_folder import write_whole


def write(
    rows: list[Row], folders: Sequence[Path], html: Path | None, markdown: Path | None
) -> list[Path]:
    """Write the report in the forms for which there is a file, and return all files written;
    `ConfigError` where one can't be. Without matplotlib it has no pictures, and says so.
    """
    with _plots() as plots:
        document = _document(rows, folders, *plots)
        files: list[Path] = []
        if html is not None:
            with _writing("--html", html):
                write_whole(html, to_html(document))
            files.append(html)
        if markdown is not None:
            text, figures = to_markdown(document, markdown.stem)
            with _writing("--markdown", markdown):
                for name, figure in figures.items():
                    save(figure, markdown.with_name(name))
                write_whole(markdown, text)
            files += [markdown, *(markdown.with_name(name) for name in figures)]
        return files


def _document(
    rows: list[Row], folders: Sequence[Path], run_plots: Any, experiment_plots: Any
) -> Document:
    found = experiments.find(folders)
    sections = [
        experiments.experiment_section(folder, number, experiment_plots)
        for number, folder in enumerate(found, 1)
    ]
    about = [
        f"{len(rows)} run{'s' if len(rows) != 1 else ''}",
        f"made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by dist_ml {__version__}",
    ]
    if run_plots is None:
        about.append(f"without pictures: they need matplotlib; run {install_command('plot')}")
    title = ", ".join(map(str, folders))
    return Document(title, "; ".join(about), [*sections, *run_sections(rows, run_plots)])


@contextmanager
def _plots() -> Iterator[tuple[Any, Any]]:
    """What draws runs and experiments; None and None where there is no matplotlib."""
    try:
        from dist_ml.cli import plots as run_plots
        from dist_ml.experiment import plots as experiment_plots
    except ImportError:
        yield None, None
        return
    with page_style():
        yield run_plots, experiment_plots


@contextmanager
def _writing(flag: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{flag} {file} can't be written ({error.strerror or error}); choose another file"
        ) from error
