"""Numbers in README.md are those of benchmarks/results, and nobody typed them."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.readme_numbers import (
    DOCUMENTS,
    NUMBER,
    ROOT,
    at,
    bounds,
    passages,
    renewed,
    without_passages,
)

MEASURED = ("Results", "Speed", "Training")  # sections of README.md that give figures
VALUES = {
    "plain": {"a b": [1.0, 2.345]},
    "rows": [{"name": "one", "x": 4}, {"name": "a, b", "x": 0.5}],
    "dotted": {"k.1": 7},
}
BLOCK = "at <!-- from run.json rows[name=a, b] as {x:.2f} or {1/x:.0f} -->0.50 or 2<!-- . -->."
TABLE = """text

<!-- from run.json as
| x | y |
|---|---|
| 1 | {plain[a b][1]:.1f} |
-->

| x | y |
|---|---|
| 1 | 2.3 |

<!-- . -->

more 9.9
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(VALUES))
    return tmp_path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.parent.name))
def test_documents_say_what_the_results_say(path: Path) -> None:
    for one in passages(path.read_text(encoding="utf-8")):
        assert one.text == one.rendered, (
            f"{path.name}, line {one.line} differs from results/{one.source}; run"
            " python benchmarks/readme_numbers.py --write"
        )


def test_every_figure_in_readme_has_a_source() -> None:
    document = DOCUMENTS[0].read_text(encoding="utf-8")
    assert len(list(passages(document))) >= 4
    for section in re.split(r"^## ", document, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        if title in MEASURED:
            typed = NUMBER.findall(without_passages(section))
            assert not typed, f"{title}: {typed} come from no file in benchmarks/results"


def test_bounds_in_readme_stand_in_the_tests_that_hold_them() -> None:
    found = list(bounds(DOCUMENTS[0].read_text(encoding="utf-8")))
    assert found
    for number, name in found:
        assert number in (ROOT / name).read_text(encoding="utf-8"), f"{number} is not in {name}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("plain[a b][1]", 2.345),
        ("rows[1].x", 0.5),
        ("rows[name=a, b].x", 0.5),
        ("rows[name=one&x=4].x", 4),
        ("dotted[k.1]", 7),
        ("", VALUES),
    ],
)
def test_paths(path: str, value: object) -> None:
    assert at(VALUES, path) == value


@pytest.mark.parametrize(
    "path", ["rows[name=two]", "rows[name=one&x=5]", "rows[5]", "nothing", "plain.c"]
)
def test_paths_to_nowhere(path: str) -> None:
    with pytest.raises((KeyError, IndexError)):
        at(VALUES, path)


@pytest.mark.parametrize("document", [BLOCK, TABLE])
def test_a_document_that_is_right_stays(results: Path, document: str) -> None:
    (one,) = passages(document, results)
    assert one.text == one.rendered
    assert renewed(document, results) == document


def test_a_number_that_is_wrong_is_found_and_renewed(results: Path) -> None:
    wrong = BLOCK.replace("0.50 or 2<", "0.51 or 2<")
    (one,) = passages(wrong, results)
    assert (one.text, one.rendered, one.source) == ("0.51 or 2", "0.50 or 2", "run.json")
    assert renewed(wrong, results) == BLOCK


def test_a_source_that_is_gone(results: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1, from absent\.json"):
        list(passages(BLOCK.replace("run.json", "absent.json"), results))
    with pytest.raises(ValueError, match="no entry has name=c"):
        list(passages(BLOCK.replace("name=a, b", "name=c"), results))


def test_what_is_left_without_passages() -> None:
    assert re.findall(r"\d+\.\d+", without_passages(TABLE + "`v1.2`")) == ["9.9"]
