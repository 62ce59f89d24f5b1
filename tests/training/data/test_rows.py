from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from epic_retrieval.errors import InputError
from epic_training.data.rows import TrainingRow
from tests.training.data.samples import MIXED

GOOD: dict[str, Any] = {"query": "q", "positives": ("p",)}


def test_a_row_keeps_its_texts_unchanged() -> None:
    long = "x" * 100_000
    row = TrainingRow(f" {MIXED}\n", (MIXED, long), ("\ttab",), (1, 0.5), (-2,), "find", "normal")
    assert row.query == f" {MIXED}\n"
    assert row.positives == (MIXED, long)
    assert row.negatives == ("\ttab",)
    assert row.positive_scores == (1.0, 0.5)
    assert [type(score) for score in row.positive_scores] == [float, float]
    assert row.negative_scores == (-2.0,)
    with pytest.raises(FrozenInstanceError):
        row.query = "other"  # type: ignore[misc]


def test_lists_become_tuples() -> None:
    row = TrainingRow("q", ["p"], ["n"], [1.0], [2.0])  # type: ignore[arg-type]
    assert row == TrainingRow("q", ("p",), ("n",), (1.0,), (2.0,))


def test_a_row_without_negatives_needs_no_scores_of_them() -> None:
    assert TrainingRow("q", ("p",), positive_scores=(3.0,)).negative_scores == ()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"query": ""}, "query is ''; expected a text that is not blank"),
        ({"query": " \n\u00a0"}, "query is"),
        ({"query": None}, "query is None (NoneType)"),
        ({"query": 7}, "query is 7 (int)"),
        ({"query": "half \ud83d"}, "query holds half a surrogate pair at character 5"),
        ({"positives": ()}, "no positive; expected at least one"),
        ({"positives": "text"}, "positives is 'text' (str); expected a list"),
        ({"positives": None}, "positives is None (NoneType)"),
        ({"positives": ("p", " ")}, "positive 2 is ' '"),
        ({"positives": ("p\udc00",)}, "positive 1 holds half a surrogate pair"),
        ({"negatives": ("n", "")}, "negative 2 is ''"),
        ({"negatives": (None,)}, "negative 1 is None"),
        ({"negatives": "n"}, "negatives is 'n' (str)"),
        ({"positive_scores": (1.0, 2.0)}, "positive_scores holds 2 numbers for 1 texts"),
        ({"negatives": ("n",), "negative_scores": (1, 2)}, "negative_scores holds 2 numbers"),
        ({"negative_scores": (1.0,)}, "negative_scores holds 1 numbers for 0 texts"),
        ({"positive_scores": (float("nan"),)}, "number 1 is nan; expected a finite"),
        ({"positive_scores": (10**400,)}, "number 1 is inf; expected a finite"),
        ({"positive_scores": (True,)}, "number 1 is True (bool)"),
        ({"positive_scores": ("1",)}, "number 1 is '1' (str)"),
        ({"positive_scores": 1.0}, "positive_scores is 1.0 (float); expected a list"),
        (
            {"negatives": ("n",), "positive_scores": (1.0,)},
            "1 scores of positives and 0 of negatives; expected scores of all texts",
        ),
        ({"instruction": " "}, "instruction is ' '"),
        ({"instruction": 3}, "instruction is 3 (int)"),
        ({"kind": "\ud800"}, "kind holds half a surrogate"),
    ],
)
def test_a_broken_rule_is_named(fault: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as raised:
        TrainingRow(**(GOOD | fault))
    assert words in str(raised.value)
