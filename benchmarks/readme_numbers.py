"""Numbers in Markdown that come from `results/`: says where they differ, or writes them anew.

    python benchmarks/readme_numbers.py             # what differs; exit code 1 if anything does
    python benchmarks/readme_numbers.py --write     # puts what the results say in its place

A passage that holds such numbers stands between two comments, which Markdown does not show:

    <!-- from encoding.json ratios[ratio=text, shared / epic, shared] as
    {median:.2f} ({interval[0]:.2f} to {interval[1]:.2f}) -->1.27 (1.18 to 1.39)<!-- . -->

First the file, then a path in it, which may be left out, then what to write: text with fields,
each a further path and a format. A path is names with dots between; `[name]` is a name that holds
dots or blanks, `[2]` an entry of a list, `[key=value]` the first whose key has this value, and
`[key=value&other=value]` the first with both. `{1/path:.2f}` is one over the value. A template
that begins on a line of its own writes whole lines, such as tables. Bounds that a test holds name
the test, and are looked for in it:

    <!-- in tests/test_parity.py -->at least .99<!-- . -->
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")

_BLOCK = re.compile(
    r"(?P<begin><!-- from (?P<file>\S+)(?P<base>.*?) as(?P<template>[ \n].*?)-->)"
    r"(?P<text>.*?)(?P<end><!-- \. -->)",
    re.DOTALL,
)
_TESTED = re.compile(r"<!-- in (?P<file>\S+) -->(?P<text>.*?)<!-- \. -->", re.DOTALL)
NUMBER = re.compile(r"\d*\.\d+")
_FIELD = re.compile(r"\{(?P<path>[^{}:]*(?:\[[^\]]*\][^{}:]*)*)(?::(?P<form>[^{}]*))?\}")
_STEP = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")


@dataclass(frozen=True)
class Passage:
    """A passage whose numbers come from a result: what stands there, and what should."""

    line: int
    source: str
    text: str
    rendered: str


def passages(document: str, results: Path = RESULTS) -> Iterator[Passage]:
    """All passages of a document.

    Raises:
        ValueError: a result or a path in it does not exist.
    """
    for found in _BLOCK.finditer(document):
        line = document.count("\n", 0, found.start()) + 1
        try:
            rendered = render(found, results)
        except (KeyError, IndexError, OSError, ValueError, TypeError) as error:
            raise ValueError(f"line {line}, from {found['file']}: {error}") from error
        yield Passage(line, found["file"], found["text"], rendered)


def render(found: re.Match[str], results: Path) -> str:
    """What a passage should say."""
    values = json.loads((results / found["file"]).read_text(encoding="utf-8"))
    base = at(values, found["base"].strip())
    template = found["template"]
    whole_lines = template.startswith("\n") and template.endswith("\n")
    text = _FIELD.sub(lambda field: _value(base, field), template.strip())
    return f"\n\n{text}\n\n" if whole_lines else text


def at(values: Any, path: str) -> Any:  # noqa: ANN401 (JSON)
    """What lies at a path.

    Raises:
        KeyError, IndexError: nothing does.
    """
    for bracket, name in _STEP.findall(path):
        if isinstance(values, list):
            values = _entry(values, bracket or name)
        else:
            values = values[bracket or name]
    return values


def _entry(rows: list[Any], step: str) -> Any:  # noqa: ANN401 (JSON)
    """The row of this number, or the first one with these values."""
    if "=" not in step:
        return rows[int(step)]
    wanted = [part.partition("=") for part in step.split("&")]
    for row in rows:
        if all(str(row[key]) == value for key, _, value in wanted):
            return row
    raise KeyError(f"no entry has {step}")


def renewed(document: str, results: Path = RESULTS) -> str:
    """The document with what the results say."""
    return _BLOCK.sub(lambda one: one["begin"] + render(one, results) + one["end"], document)


def bounds(document: str) -> Iterator[tuple[str, str]]:
    """Every number that a test is to hold, and the test's file."""
    for found in _TESTED.finditer(document):
        yield from ((number, found["file"]) for number in NUMBER.findall(found["text"]))


def without_passages(document: str) -> str:
    """The document without what comes from results and tests, and without code."""
    rest = _TESTED.sub("", _BLOCK.sub("", document))
    return re.sub(r"```.*?```|`[^`]*`|<!--.*?-->", "", rest, flags=re.DOTALL)


def _value(base: Any, field: re.Match[str]) -> str:  # noqa: ANN401 (JSON)
    path = field["path"].strip()
    inverse = path.startswith("1/")
    value = at(base, path.removeprefix("1/"))
    return format(1 / value if inverse else value, field["form"] or "")


def main(
    write: Annotated[bool, typer.Option("--write", help="Write what the results say.")] = False,
) -> None:
    """Compare, or write."""
    differ = 0
    for path in DOCUMENTS:
        document = path.read_text(encoding="utf-8")
        if write:
            path.write_text(renewed(document), encoding="utf-8")
            continue
        for one in passages(document):
            if one.text != one.rendered:
                differ += 1
                typer.echo(
                    f"{path.name}, line {one.line}: {one.source} says {one.rendered.strip()}"
                )
    if differ:
        typer.echo(f"{differ} passages differ; to renew them: {sys.argv[0]} --write", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
