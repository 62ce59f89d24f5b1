"""Training pairs as token ids: one flat array per column and dataset, memory-mapped.

A dataset is a folder with `pairs.jsonl.gz`, one `{"query", "positive", "negative"?}` a line. Its
texts are tokenised once and kept as `<column>.ids.npy` (int32) with `<column>.ends.npy`
(int64), so that a run neither holds Python strings nor tokenises twice. A pair belongs to the
development split when a hash of its query says so: the same query never stands on both sides.

Knows nothing of models and losses.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from epic_retrieval.errors import InputError

COLUMNS = ("query", "positive", "negative")
_TOKENISE_AT_ONCE = 8192


@dataclass(frozen=True)
class Pair:
    """One training row; `negative` is "" where the data has none."""

    query: str
    positive: str
    negative: str = ""


def read_pairs(path: Path) -> Iterator[Pair]:
    """Yield the rows of a `.jsonl.gz` file.

    Raises:
        InputError: with file and line, when a row is not JSON, lacks a non-empty text, or holds
            something else than valid Unicode text.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                pair = Pair(row["query"], row["positive"], row.get("negative") or "")
                for text in (pair.query, pair.positive, pair.negative):
                    text.encode()  # fails for what is no text, and for half a surrogate pair
            except (
                json.JSONDecodeError,
                KeyError,
                TypeError,
                AttributeError,
                UnicodeEncodeError,
            ) as error:
                raise InputError(
                    f"{path}, line {number}: {error!r}; expected a JSON object with the texts"
                    ' "query", "positive" and, optionally, "negative"'
                ) from error
            if not (pair.query.strip() and pair.positive.strip()):
                raise InputError(f"{path}, line {number}: empty query or positive; remove the row")
            yield pair


def is_development(query: str, percent: float) -> bool:
    """Whether a pair with this query is held out: about `percent` of all queries are."""
    digest = hashlib.blake2b(query.strip().lower().encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < percent / 100 * 2**32


@dataclass(frozen=True)
class TokenColumn:
    """Token ids of n texts: text i is `ids[ends[i-1]:ends[i]]`."""

    ids: NDArray[np.int32]  # (tokens,)
    ends: NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        start = self.ends[index - 1] if index else 0
        return self.ids[start : self.ends[index]]


@dataclass(frozen=True)
class TokenisedPairs:
    """One split of one dataset, memory-mapped. Row i of every column belongs together."""

    name: str
    query: TokenColumn
    positive: TokenColumn
    negative: TokenColumn  # empty ids where the data has no negative

    def __len__(self) -> int:
        return len(self.query)


def tokenise_pairs(
    source: Path,
    out: Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    dev_percent: float,
    most: int | None = None,
) -> None:
    """Write the `train` and `dev` splits of the dataset folder `source` below `out`.

    Texts are cut at `max_tokens`. Of the training split at most about `most` pairs are kept, evenly
    spread. Does nothing when `out` is complete: `done.json` comes last.
    """
    if (out / "done.json").is_file():
        return
    rows: dict[str, list[Pair]] = {"train": [], "dev": []}
    for pair in read_pairs(source / "pairs.jsonl.gz"):
        rows["dev" if is_development(pair.query, dev_percent) else "train"].append(pair)
    if most is not None and len(rows["train"]) > most:
        rows["train"] = rows["train"][:: -(-len(rows["train"]) // most)]
    for split, pairs in rows.items():
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        for column in COLUMNS:
            texts = [getattr(pair, column) for pair in pairs]
            _write_column(folder / column, texts, tokenizer, max_tokens)
    counts = {split: len(pairs) for split, pairs in rows.items()}
    (out / "done.json").write_text(json.dumps(counts), encoding="utf-8")


def _write_column(path: Path, texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> None:
    pieces: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), _TOKENISE_AT_ONCE):
        batch = list(texts[start : start + _TOKENISE_AT_ONCE])
        pieces += [
            np.asarray(encoding.ids[:max_tokens], dtype=np.int32)
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ]
    ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
    np.save(path.with_suffix(".ids.npy"), ids)
    np.save(
        path.with_suffix(".ends.npy"), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    )


def open_pairs(folder: Path, split: str) -> TokenisedPairs:
    """Memory-map what `tokenise_pairs` wrote for one dataset. `split` is `train` or `dev`."""
    columns = [
        TokenColumn(
            np.load(folder / split / f"{column}.ids.npy", mmap_mode="r"),
            np.load(folder / split / f"{column}.ends.npy"),
        )
        for column in COLUMNS
    ]
    return TokenisedPairs(folder.name, *columns)
