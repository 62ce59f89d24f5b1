"""The figures of a record: which there are, inside a page, and as files.

Every figure is drawn from the record alone; one without data is left out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_retrieval.benchmarking.curves import curves_of
from epic_retrieval.benchmarking.plots import (
    AXES,
    curve_drawer,
    draw_arrivals,
    draw_batches,
    draw_cold,
    draw_positions,
    draw_rivals,
    draw_stages,
)
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.style import LIGHT, PLACEHOLDERS, Palette, with_variables
from epic_retrieval.benchmarking.tables import grouped, stage_rows
from epic_retrieval.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure to draw.

    Attributes:
        name: of its file, without an ending.
        title: what it shows, in words.
        part: of the benchmark that it belongs to.
        draw: puts it on an empty figure.
    """

    name: str
    title: str
    part: str
    draw: "Callable[[Figure, Palette], None]"


def drawings(record: Record) -> Iterator[Drawing]:
    """All figures that the record has data for."""
    rows = stage_rows(record)
    if rows:
        yield Drawing("stages", "Retrieval of a single request, by stage", "stages",
                      lambda figure, colours: draw_stages(figure, colours, rows))  # fmt: skip
    batches = grouped(record, "batches", "batch")
    if batches:
        yield Drawing("batches", "Requests that arrive together", "batches",
                      lambda figure, colours: draw_batches(figure, colours, batches))  # fmt: skip
    arrivals = grouped(record, "arrivals", "load")
    if arrivals:
        yield Drawing("arrivals", "Latency under Poisson arrivals", "arrivals",
                      lambda figure, colours: draw_arrivals(figure, colours, arrivals))  # fmt: skip
    if record.under("cold/"):
        yield Drawing("cold", "The first query of a task", "cold",
                      lambda figure, colours: draw_cold(figure, colours, record))  # fmt: skip
    if any(one["below"] == "epic-shared" for one in record.ratios):
        yield Drawing("rivals", "Times over those of EPIC behind a shared prompt", "rivals",
                      lambda figure, colours: draw_rivals(figure, colours, record))  # fmt: skip
    if record.facts.get("costs"):
        yield Drawing("positions", "Positions of a task's prompt", "costs",
                      lambda figure, colours: draw_positions(figure, colours, record))  # fmt: skip
    for what, label in AXES.items():
        if curves := curves_of(record, what):
            name = f"scaling-{what.replace(' ', '-')}"
            title = f"Time of a query against {label}"
            yield Drawing(name, title, "scaling", curve_drawer(what, curves))


def svg_of(drawing: Drawing) -> str:
    """The figure as an SVG element whose colours are CSS variables."""
    with _figure(drawing, PLACEHOLDERS) as figure:
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    return with_variables(svg[svg.index("<svg") :])


def write_figures(record: Record, folder: Path) -> list[Path]:
    """Write all figures as PNG files on light ground; returns their paths.

    Raises:
        InputError: the folder cannot be made.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); name another") from error
    paths = []
    for drawing in drawings(record):
        path = folder / f"{drawing.name}.png"
        with _figure(drawing, LIGHT) as figure:
            figure.savefig(path, dpi=150, facecolor=LIGHT["ground"])
        paths.append(path)
    return paths


@contextmanager
def _figure(drawing: Drawing, colours: Palette) -> "Iterator[Figure]":
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "reports need matplotlib, which is not installed; "
            "run: pip install 'epic-retrieval[bench]'"
        ) from error
    settings: Any = {  # keys of matplotlib's own
        "svg.fonttype": "none",
        # Names inside drawings must differ where several stand in one page, and never by chance.
        "svg.hashsalt": drawing.name,
        "font.size": 10,
        "axes.edgecolor": colours["line"],
        "axes.labelcolor": colours["ink"],
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": colours["ink"],
        "xtick.color": colours["faint"],
        "ytick.color": colours["faint"],
        "grid.color": colours["line"],
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        drawing.draw(figure, colours)
        yield figure
