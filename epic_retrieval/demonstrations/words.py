"""Texts as their words alone, so that case, punctuation and white space do not tell them apart."""

import re
import unicodedata
from typing import Final

_WORD: Final = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, NFKC and case-folded; signs alone make no word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """The words of a text with a space between them; a text of signs alone stays as it is."""
    return " ".join(words_of(text)) or text.strip()
