"""Whether two texts are the same but for details, without a model.

Long texts by the runs of words that they share, as decontamination of training data does it, with
runs short enough that an edit here and there does not hide a copy; short texts, which have hardly
any, by runs of characters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from epic_retrieval.demonstrations.words import words_of

_WORDS = 5  # of a long text's shingle
_LONG = 16  # words; from here on, word shingles are enough to compare
_CHARACTERS = 5  # of a short text's shingle
_CONTAINED = 0.5  # share of the shorter text's word shingles that the longer one has
_ALIKE = 0.8  # Jaccard similarity of character shingles

Kind = Literal["exact", "near"]


@dataclass(frozen=True)
class Shingles:
    """A text made ready for comparison."""

    text: str
    words: frozenset[tuple[str, ...]]
    characters: frozenset[str]

    @property
    def long(self) -> bool:
        """Whether it is compared by its words."""
        return bool(self.words)

    @classmethod
    def of(cls, text: str) -> "Shingles":
        """Take a text apart."""
        words = words_of(text)
        plain = " ".join(words) or text.strip()
        if len(words) >= _LONG:
            return cls(plain, frozenset(_windows(words)), frozenset())
        ends = range(max(1, len(plain) - _CHARACTERS + 1))
        return cls(plain, frozenset(), frozenset(plain[i : i + _CHARACTERS] for i in ends))

    def compare(self, other: "Shingles") -> tuple[Kind, float] | None:
        """How two texts are the same, with their similarity from 0 to 1; None: they are not."""
        if self.text == other.text:
            return "exact", 1.0
        if self.long != other.long:
            return None
        if self.long:
            shared = len(self.words & other.words) / min(len(self.words), len(other.words))
            return ("near", shared) if shared >= _CONTAINED else None
        both = len(self.characters & other.characters)
        shared = both / (len(self.characters) + len(other.characters) - both)
        return ("near", shared) if shared >= _ALIKE else None


def _windows(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(_WORDS)), strict=False)
