"""Demonstrations that give away a test set: its queries, or passages that answer them.

A passage that is merely in the corpus to be searched gives nothing away, and neither does an answer
of a few words: labels are the same in every split. Knows no model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from epic_retrieval.demonstrations.labelled import read_labelled
from epic_retrieval.demonstrations.similar import Kind, Shingles
from epic_retrieval.demonstrations.words import words_of
from epic_retrieval.errors import InputError
from epic_retrieval.index._tables import text_lines
from epic_retrieval.tasks import Task

_LABEL = 5  # words; a shorter answer may be a label
_LONGEST_LINE = 2**26  # bytes


@dataclass(frozen=True)
class TestSet:
    """Texts that no demonstration may give away.

    Attributes:
        name: for messages.
        queries: texts.
        answers: passages that answer a query.
    """

    __test__ = False  # pytest would take the class for tests

    name: str
    queries: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Leak:
    """A text of a demonstration that a test set has too.

    Attributes:
        number: of the demonstration, from 1.
        part: which of its texts: "query" or "passage".
        of: what it was found among: "query" or "answer".
        kind: "exact": the same words; "near": mostly the same.
        similarity: from 0 to 1.
        test: the test set's name.
        text: as the test set has it.
    """

    number: int
    part: str
    of: str
    kind: Kind
    similarity: float
    test: str
    text: str


def read_test_set(path: str | Path) -> TestSet:
    """Read a test set.

    Args:
        path: a retrieval folder, of which the test queries and their passages are taken; pairs in
            JSON Lines; or a `.txt` file of queries, one a line.

    Raises:
        InputError: naming the file and the line, for whatever cannot be used.
    """
    found = Path(path)
    if found.name.lower().endswith(".txt"):
        lines = [text.strip() for _, text in text_lines(found, _LONGEST_LINE)]
        queries = tuple(line for line in lines if line)
        if not queries:
            raise InputError(f"{found} holds no query; expected one a line")
        return TestSet(found.name, queries, ())
    labelled = read_labelled(found, "test" if found.is_dir() else None)
    answers = dict.fromkeys(one for relevant in labelled.relevant for one in relevant)
    texts = tuple(labelled.passages[one] for one in answers)
    return TestSet(found.name, labelled.queries, texts)


def find_leaks(task: Task, tests: Iterable[TestSet]) -> list[Leak]:
    """Every text of a demonstration that is, or nearly is, a test query or answer.

    Queries are compared with queries and passages with answers; where both are of one kind, in a
    symmetric task, also the other way round. Elsewhere answers of a few words are left out.
    """
    shown = [
        (number, part, Shingles.of(text))
        for number, one in enumerate(task.demonstrations, start=1)
        for part, text in one.to_dict().items()
    ]
    return [leak for test in tests for leak in _leaks(shown, test, symmetric=task.symmetric)]


def _leaks(
    shown: list[tuple[int, str, Shingles]], test: TestSet, *, symmetric: bool
) -> Iterator[Leak]:
    compared: Mapping[str, tuple[str, ...]] = {"query": test.queries, "answer": test.answers}
    partner = {"query": "query", "passage": "answer"}
    for of, texts in compared.items():
        own = [one for one in shown if symmetric or partner[one[1]] == of]
        for text in texts:
            if of == "answer" and not symmetric and len(words_of(text)) < _LABEL:
                continue
            other = Shingles.of(text)
            for number, part, mine in own:
                if found := mine.compare(other):
                    yield Leak(number, part, of, *found, test.name, text)
