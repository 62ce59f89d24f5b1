"""A record as one HTML page that needs no other file, on light and on dark ground."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from epic_retrieval.benchmarking.curves import curves_of
from epic_retrieval.benchmarking.figures import drawings, svg_of
from epic_retrieval.benchmarking.findings import findings
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.style import variables
from epic_retrieval.benchmarking.tables import (
    Table,
    agreement_table,
    arrival_table,
    batch_table,
    cold_table,
    cost_table,
    curve_table,
    larger_tables,
    rival_table,
    stage_table,
)
from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically

_TITLES = {
    "stages": "From the question to the first answer",
    "batches": "Requests that arrive together",
    "arrivals": "Requests that arrive by chance",
    "cold": "The first query of a task",
    "rivals": "Other ways to encode the same queries",
    "costs": "What a prompt costs beside time",
    "scaling": "What time depends on",
}
_NOTES = {
    "stages": "Medians in milliseconds of single requests in turns. The answer comes from a"
    " stand-in for a language model, unless the record says otherwise; it is in the whole, not in"
    " the figure.",
    "batches": "Retrieval without the answer.",
    "arrivals": "An open loop: a request's latency counts from when it was due, queue included.",
    "cold": "Reading and hashing the model's weights is not counted: that happens once a model.",
    "rivals": "The same weights, texts and machine, in bge-en-icl's wording; rounds in turns,"
    " ratios within a round. As methods, only those compare that share their prompt; the others do"
    " as their library or paper does. Time on a core is less disturbed by other programs.",
    "costs": "Payback: from how many queries preparing the prompt once has cost no more than"
    " running it again for each.",
    "scaling": "One thing varied, all else fixed; single queries unless batches are varied. Indexes"
    " of random clustered vectors.",
}
_CSS = """
:root{color-scheme:light dark;%(light)s}
@media(prefers-color-scheme:dark){:root{%(dark)s}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem 5rem;max-width:70rem;background:var(--ground);
color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.25rem;margin:3rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
p,li{max-width:46rem}
.faint,figcaption{color:var(--faint);font-size:.9rem}
figure{margin:1.25rem 0}
figure svg{max-width:100%%;height:auto;display:block}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line);text-align:right;
white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{color:var(--faint);font-weight:600}
details{margin:1rem 0}
summary{cursor:pointer;color:var(--faint)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;font-size:.9rem;
background:var(--panel);padding:1rem 1.25rem;border-radius:.4rem;margin:1.5rem 0}
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}
"""


def write_page(record: Record, path: Path) -> None:
    """Write the report.

    Raises:
        InputError: the file cannot be written, or has another ending than .html.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in {".html", ".htm"}:
        raise InputError(f"{path}: a report is a page; expected a name that ends in .html")
    try:
        write_atomically(path, page_of(record).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another") from error


def page_of(record: Record) -> str:
    """The page as text."""
    css = _CSS % {"light": variables(dark=False), "dark": variables(dark=True)}
    body = "\n".join(_body(record))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(_title(record))}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _title(record: Record) -> str:
    return f"epic bench rag: {record.facts.get('model', {}).get('name', 'a model')}"


def _body(record: Record) -> Iterator[str]:
    yield f"<h1>{escape(_title(record))}</h1>"
    yield '<p class="faint">Latency from the question to the first answer, in milliseconds unless'
    yield " another unit is given; brackets and error bars are 95 % bootstrap intervals.</p>"
    yield from _about(record)
    sentences = findings(record)
    pictures = list(drawings(record))
    for part, title in _TITLES.items():
        tables = list(_tables(record, part))
        if not tables:
            continue
        yield f'<section id="{part}"><h2>{escape(title)}</h2>'
        yield f'<p class="faint">{escape(_NOTES[part])}</p>'
        if part in sentences:
            yield "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in sentences[part]) + "</ul>"
        for drawing in pictures:
            if drawing.part == part:
                yield f'<figure role="img" aria-label="{escape(drawing.title)}">{svg_of(drawing)}'
                yield f"<figcaption>{escape(drawing.title)}</figcaption></figure>"
        for number, (heading, table) in enumerate(tables):
            yield from _table(heading, table, folded=number > 0 or len(table.rows) > 12)
        yield "</section>"
    if record.left_out:
        yield "<section><h2>Left out</h2><ul>"
        for name, why in record.left_out.items():
            yield f"<li>{escape(name)}: {escape(why)}</li>"
        yield "</ul></section>"


def _about(record: Record) -> Iterator[str]:
    """What the figures belong to."""
    about = record.environment
    model, index = record.facts.get("model", {}), record.facts.get("index", {})
    load = about.get("load_average_at_begin")
    entries = {
        "model": f"{model.get('name')}, {model.get('parameters', 0) / 1e6:,.0f} million parameters,"
        f" {model.get('precision')}, on {model.get('device')}",
        "index": f"{index.get('passages', 0):,} passages, {index.get('kind')}",
        "machine": f"{about.get('cpu')}, {about.get('cores')} cores, {about.get('threads')} thread"
        + ("" if about.get("threads") == 1 else "s")
        + (f", {about['gpu']}" if about.get("gpu") else ""),
        "load at the beginning": None if load is None else f"{load:.1f}",
        "versions": ", ".join(f"{name} {one}" for name, one in about.get("versions", {}).items()),
        "commit": about.get("commit"),
        "command": about.get("command"),
    }
    yield "<dl>"
    for name, value in entries.items():
        if value is not None:
            yield f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
    yield "</dl>"


def _tables(record: Record, part: str) -> Iterator[tuple[str, Table]]:
    """The tables of a part that have rows, with their headings."""
    made: dict[str, list[tuple[str, Table]]] = {
        "stages": [("Medians by stage", stage_table(record))],
        "batches": [("Batches", batch_table(record))],
        "arrivals": [("Arrivals", arrival_table(record))],
        "cold": [("First queries", cold_table(record))],
        "rivals": [
            ("One batch", rival_table(record, "batch")),
            ("One query at a time", rival_table(record, "single")),
            ("Do they do the same work?", agreement_table(record)),
        ],
        "costs": [("Prompts", cost_table(record)), *_larger(record)],
        "scaling": [
            (what.capitalize(), curve_table(curves))
            for what in (
                "demonstrations",
                "demonstration tokens",
                "query tokens",
                "batch",
                "corpus",
            )
            if (curves := curves_of(record, what))
        ],
    }
    return ((heading, table) for heading, table in made[part] if table.rows)


def _larger(record: Record) -> Iterator[tuple[str, Table]]:
    assumed = record.facts.get("larger models", {}).get("assumed", {})
    words = ", ".join(f"{name} {value}" for name, value in assumed.items())
    for name, table in larger_tables(record):
        yield f"{name}, counted from its configuration, not measured ({words})", table


def _table(heading: str, table: Table, *, folded: bool) -> Iterator[str]:
    head = "".join(f"<th>{escape(one)}</th>" for one in table.headings)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    whole = f'<div class="scroll">{inner}</div>'
    if folded:
        yield f"<details><summary>{escape(heading)}</summary>{whole}</details>"
    else:
        yield f"<h3>{escape(heading)}</h3>{whole}"
