"""What negatives are mined from: passages, each once, and which of them answer which query.

Texts are the same when they differ in white space only; case counts, since `ls -a` is not `ls -A`.
Knows nothing of encoders, scores and files.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from epic_retrieval.errors import InputError
from epic_training.data.rows import TrainingRow


def text_key(text: str) -> bytes:
    """What two texts share that differ in white space only."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=12).digest()


@dataclass(frozen=True)
class Pool:
    """Passages by number; the candidates come first, then what is only scored.

    Attributes:
        texts: of all passages.
        candidates: how many of them may become negatives.
        numbers: of passages, by `text_key`.
        answers: by the `text_key` of a query, the positives of all rows with that query.
        rows: how many rows there were.
    """

    texts: list[str]
    candidates: int
    numbers: dict[bytes, int]
    answers: dict[bytes, tuple[int, ...]]
    rows: int

    def number(self, text: str) -> int:
        """The number of a text of the training data.

        Raises:
            InputError: it was not there when the pool was read.
        """
        found = self.numbers.get(text_key(text))
        if found is None:
            raise InputError(
                f"the text {text[:60]!r} was not there a moment ago: the training data changed"
                " while it was read; leave it alone, and run the command again"
            )
        return found

    def not_to_choose(self, row: TrainingRow, *, keep_negatives: bool) -> set[int]:
        """Passages that are no new negatives of a row.

        The positives of every row with this query, the query itself (in symmetric data queries are
        passages too) and, with `keep_negatives`, the negatives that the row has.
        """
        query = text_key(row.query)
        numbers = set(self.answers.get(query, ()))
        if query in self.numbers:
            numbers.add(self.numbers[query])
        if keep_negatives:
            numbers.update(map(self.number, row.negatives))
        return numbers


def read_pool(rows: Iterable[TrainingRow], corpus: Iterable[str] | None = None) -> Pool:
    """Collect passages.

    Args:
        rows: of the training data, streamed.
        corpus: the candidates; None takes the positives and negatives of the rows. With a corpus,
            those of the rows that it lacks are scored, but never chosen.

    Raises:
        InputError: there are no rows.
    """
    texts: list[str] = []
    numbers: dict[bytes, int] = {}

    def add(text: str) -> int:
        key = text_key(text)
        if key not in numbers:
            numbers[key] = len(texts)
            texts.append(text)
        return numbers[key]

    for text in corpus or ():
        add(text)
    candidates = len(texts)
    answers: dict[bytes, tuple[int, ...]] = {}
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 (the last one is the number of rows)
        key = text_key(row.query)
        known = answers.get(key, ())
        answers[key] = tuple(dict.fromkeys((*known, *map(add, row.positives))))
        for text in row.negatives:
            add(text)
    if not answers:
        raise InputError("the training data has no rows; give some")
    return Pool(texts, len(texts) if corpus is None else candidates, numbers, answers, count)
