from pathlib import Path

import pytest

from epic_retrieval.benchmarking.conditions import PARTS, RIVALS, Conditions
from epic_retrieval.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_conditions_of_the_package() -> None:
    found = Conditions.load()
    assert found.rivals == RIVALS
    assert found.only == PARTS
    assert Conditions.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("rag*.yaml")), ids=lambda path: path.name)
def test_the_conditions_of_recorded_runs(path: Path) -> None:
    assert Conditions.load(path).tasks


def test_a_file_needs_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("k: [0, 2]\nscaling: {batch: []}\nanswering: {first_ms: 5}\n")
    found = Conditions.load(path)
    assert (found.k, found.scaling.batch, found.answering.first_ms) == ((0, 2), (), 5)
    assert found.scaling.query_tokens == Conditions().scaling.query_tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rivalz: []", "unknown condition rivalz"),
        ("scaling: {speed: []}", "unknown condition scaling.speed"),
        ("k: 5", "k is 5; expected a list"),
        ("k: [a]", "k is 'a'; expected int"),
        ("rounds: true", "rounds is True; expected int"),
        ("rounds: 0", "rounds is 0; expected at least 1"),
        ("batches: [0]", "batches is 0"),
        ("k: []", "k is empty"),
        ("rivals: [nobody]", "'nobody' is unknown"),
        ("answering: {way: guess}", "'guess' is unknown"),
        ("[1, 2]", "expected names and values"),
    ],
)
def test_what_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=message) as caught:
        Conditions.load(path)
    assert "mine.yaml" in str(caught.value)


def test_options_replace_conditions() -> None:
    found = Conditions().with_options(only=("cold",), tasks=None)
    assert (found.only, found.tasks) == (("cold",), Conditions().tasks)
