import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from epic_retrieval.benchmarking.figures import drawings, svg_of, write_figures
from epic_retrieval.benchmarking.findings import findings
from epic_retrieval.benchmarking.page import page_of, write_page
from epic_retrieval.benchmarking.record import Record
from epic_retrieval.benchmarking.style import PLACEHOLDERS
from epic_retrieval.benchmarking.summary import summary_lines
from epic_retrieval.errors import InputError
from tests.benchmarking.made import made_record

RECORD = made_record()
VOID = {"meta", "path", "use", "rect", "br"}


class Balance(HTMLParser):
    """Open elements and what the page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.loaded += [v for name, v in attrs if name in {"src", "href"} and v and v[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(RECORD)


def test_the_page_needs_no_other_file(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.loaded == []
    assert "<script" not in page
    assert "@import" not in page


def test_the_page_has_both_themes_and_every_part(page: str) -> None:
    assert "prefers-color-scheme:dark" in page
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert used <= set(PLACEHOLDERS.colours)
    for role in used:
        assert page.count(f"--{role}:#") == 2  # light and dark
    for part in ("stages", "batches", "arrivals", "cold", "rivals", "costs", "scaling"):
        assert f'<section id="{part}">' in page
    assert "a &lt;processor&gt;" in page
    assert "does not run &lt;here&gt;" in page


def test_figures_are_svg_whose_colours_follow_the_theme(page: str) -> None:
    found = list(drawings(RECORD))
    assert len(found) == 11
    assert page.count("<svg") == len(found)
    marks = []
    for drawing in found[:3]:
        svg = svg_of(drawing)
        ET.fromstring(svg)  # noqa: S314 (our own)
        assert not [colour for colour in PLACEHOLDERS.colours.values() if colour in svg]
        assert "var(--ink)" in svg
        assert svg == svg_of(drawing)  # the same each time
        marks.append(set(re.findall(r'<clipPath id="(\w+)"', svg)))
    assert not marks[0] & marks[1]
    assert not marks[1] & marks[2]


def test_figures_as_files(tmp_path: Path) -> None:
    record = Record({}, {}, facts={"costs": RECORD.facts["costs"]})
    (path,) = write_figures(record, tmp_path / "figures")
    assert path.name == "positions.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_record_of_one_part_makes_a_page_of_one_part(tmp_path: Path) -> None:
    record = Record({}, {})
    record.add("cold/epic/nothing kept", "ms", [9.0])
    record.add("cold/epic/prompt on disk", "ms", [2.0])
    record.add("cold/epic/warm", "ms", [1.0])
    write_page(record, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<section") == 1
    with pytest.raises(InputError, match=r"ends in \.html"):
        write_page(record, tmp_path / "page.pdf")


def test_sentences_come_from_the_numbers() -> None:
    found = findings(RECORD)
    assert found["rivals"][0].startswith("text, shared by us, in one batch: 1.20 (1.09 to 1.33)")
    rivals = " ".join(found["rivals"])
    assert "no prompt at all, in one batch: no clear difference, 1.00 (0.97 to 1.02)." in rivals
    assert "time on a core" not in rivals  # it says the same here
    assert "paid back after 2 queries" in found["costs"][0]  # 90 ms once, 80 ms saved each
    assert "paid back after 1 query" in found["costs"][1]
    words = " ".join(found["scaling"])
    assert "Exact search (flat) is faster up to about" in words
    assert "From 100,000 passages on, exact search (flat) takes longer than encoding" in words
    assert "at 128" in words
    assert "growing for as long as it lasts" in found["arrivals"][1]


def test_a_summary_for_a_terminal() -> None:
    lines = list(summary_lines(RECORD))
    assert "Rivals, one batch" in lines
    assert any(line.startswith("python-docs, demonstrations as text, k = 5") for line in lines)
    assert lines[-1] == "rivals/text-flagembedding: FlagEmbedding does not run <here>"
    assert list(summary_lines(Record({}, {}))) == []
