"""A folder of .txt and .md files becomes passages, cut at paragraph borders.

Knows nothing of tables; passages are slices of the files, never rewritten.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index._front_matter import front_matter
from epic_retrieval.index._tables import decoded, reading
from epic_retrieval.index.passage import JSON, Passage

logger = logging.getLogger(__name__)

_BORDER = re.compile(r"\r?\n(?:[ \t]*\r?\n)+")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#*)?[ \t]*\r?")
_FENCE = re.compile(r" {0,3}(```|~~~)")
# Where a paragraph that is too long may be cut, best first: line, sentence, word.
_CUTS = (re.compile(r"\n"), re.compile(r"[.!?](?=\s)|[。！？]"), re.compile(r"\s"))


def text_files(root: Path) -> list[str]:
    """Relative posix paths of the .txt and .md files below `root`, sorted; hidden ones left out."""

    def stop(error: OSError) -> None:
        raise error

    found: list[str] = []
    with reading(root):
        for folder, below, names in os.walk(root, onerror=stop):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [
                (Path(folder) / name).relative_to(root).as_posix()
                for name in names
                if not name.startswith(".") and name.lower().endswith((".txt", ".md"))
            ]
    return sorted(found)


def text_passages(root: Path, name: str, passage_chars: int) -> list[Passage]:
    """The passages of one file; none when the file is blank but for front matter."""
    path = root / name
    with reading(path):
        text = decoded(path.read_bytes(), path)
    title = ""
    metadata: dict[str, JSON] = {}
    if name.lower().endswith(".md"):
        front = front_matter(text)
        if front.problem:
            logger.warning(
                "%s: what stands between its lines of --- cannot be read; it is text now: %s",
                path,
                front.problem,
            )
        text = text[front.length :]
        title, metadata = front.title or _heading(text), front.metadata
    parts = list(split_text(text, passage_chars))
    metadata["path"] = name
    if len(parts) == 1:
        return [_passage(path, name, parts[0], title, metadata)]
    return [
        _passage(path, f"{name}#{part}", piece, title, {**metadata, "part": part})
        for part, piece in enumerate(parts, start=1)
    ]


def split_text(text: str, size: int) -> Iterator[str]:
    """Slices of `text` of at most `size` characters, cut at paragraph borders.

    Whole paragraphs are joined as long as they fit. Only a paragraph that is itself longer than
    `size` is cut inside: at a line break, else after a sentence, else between words, else at
    `size`. What falls away is white space between slices and at the end of a slice.
    """
    start: int | None = None
    end = 0
    for left, right in _spans(text, size):
        if start is not None and right - start > size:
            yield text[start:end]
            start = None
        start = left if start is None else start
        end = right
    if start is not None:
        yield text[start:end]


def _spans(text: str, size: int) -> Iterator[tuple[int, int]]:
    borders = [(border.start(), border.end()) for border in _BORDER.finditer(text)]
    starts = [0, *(end for _, end in borders)]
    ends = [*(start for start, _ in borders), len(text)]
    for left, right in zip(starts, ends, strict=True):
        start = left + len(text[left:right]) - len(text[left:right].lstrip("\r\n"))
        end = left + len(text[left:right].rstrip())
        while end - start > size:
            cut = _cut(text, start, start + size)
            yield start, start + len(text[start:cut].rstrip())
            start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
        if end > start:
            yield start, end


def _cut(text: str, start: int, end: int) -> int:
    # In the second half only: an early line break would leave a sliver.
    for pattern in _CUTS:
        places = [match.end() for match in pattern.finditer(text, (start + end) // 2, end)]
        if places:
            return places[-1]
    return end


def _heading(text: str) -> str:
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            # Inside a fence, "# ..." is code.
            fence = "" if fence else mark[1]
        elif not fence and (heading := _HEADING.fullmatch(line)) and heading[1]:
            return heading[1]
    return ""


def _passage(
    path: Path, passage_id: str, text: str, title: str, metadata: dict[str, JSON]
) -> Passage:
    try:
        return Passage(passage_id, text, title, metadata)
    except InputError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise InputError(f"{shown}: {error}") from error
