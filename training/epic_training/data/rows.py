"""One training example as every format gives it, validated once.

A row that breaks a rule is never repaired or left out: it raises, so that training sees what the
file says or nothing. Whether a text is long, in one language or full of emoji does not matter here;
nothing is cut or normalised.

Knows nothing of files, data sets, instructions' meaning or tokens.
"""

import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

from epic_retrieval.errors import InputError


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A query, passages that answer it, and passages that do not. Texts are kept unchanged.

    Attributes:
        query: not blank.
        positives: one or more passages, none blank.
        negatives: hard negatives, none blank; may be empty.
        positive_scores: a teacher's scores, one per positive, finite; or empty.
        negative_scores: one per negative, finite; or empty. A row has scores for all of its texts
            or for none of them.
        instruction: what the row says its instruction is (FlagEmbedding's `prompt`).
        kind: what the row says its kind is (FlagEmbedding's `type`), such as "symmetric_sts".

    Raises:
        InputError: naming the field and the rule it breaks. The message names no file.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    instruction: str | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        check_text("query", self.query)
        for field, word in (("positives", "positive"), ("negatives", "negative")):
            texts = _as_tuple(field, getattr(self, field))
            for number, text in enumerate(texts, start=1):
                check_text(f"{word} {number}", text)
            object.__setattr__(self, field, texts)
        if not self.positives:
            raise InputError("no positive; expected at least one: add one, or remove the row")
        for field, texts in (
            ("positive_scores", self.positives),
            ("negative_scores", self.negatives),
        ):
            scores = _as_tuple(field, getattr(self, field))
            object.__setattr__(self, field, _checked_scores(field, scores, len(texts)))
        if self.negatives and bool(self.positive_scores) != bool(self.negative_scores):
            raise InputError(
                f"{len(self.positive_scores)} scores of positives and {len(self.negative_scores)}"
                " of negatives; expected scores of all texts of a row or of none"
            )
        for field in ("instruction", "kind"):
            if getattr(self, field) is not None:
                check_text(field, getattr(self, field))


def check_text(field: str, text: object) -> None:
    """Raise InputError, naming the field, for what is no text, blank, or no valid Unicode."""
    if not isinstance(text, str):
        raise InputError(
            f"{field} is {reprlib.repr(text)} ({type(text).__name__}); expected a text"
        )
    if not text or text.isspace():
        raise InputError(
            f"{field} is {reprlib.repr(text)}; expected a text that is not blank: give it one, or"
            " remove it"
        )
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{field} holds half a surrogate pair at character {error.start}; expected valid"
            " Unicode: decode the text again from its source, or remove the row"
        ) from error


def _as_tuple(field: str, given: object) -> tuple[object, ...]:
    # A str is iterable too: its letters would become passages.
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(
            f"{field} is {reprlib.repr(given)} ({type(given).__name__}); expected a list"
        )
    return tuple(given)


def _checked_scores(field: str, scores: tuple[object, ...], texts: int) -> tuple[float, ...]:
    if len(scores) not in (0, texts):
        raise InputError(
            f"{field} holds {len(scores)} numbers for {texts} texts; expected one for each, or none"
        )
    checked = []
    for number, score in enumerate(scores, start=1):
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise InputError(
                f"{field}, number {number} is {reprlib.repr(score)} ({type(score).__name__});"
                " expected a number"
            )
        try:
            value = float(score)
        except OverflowError:  # an int may have any size
            value = math.inf
        if not math.isfinite(value):
            raise InputError(f"{field}, number {number} is {value}; expected a finite number")
        checked.append(value)
    return tuple(checked)
