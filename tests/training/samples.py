"""Toy training data: pairs in memory, and a data folder with two datasets."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from epic_training.pairs import TokenColumn, TokenisedPairs

ANIMALS = ["cat", "dog", "fox", "owl", "bear", "wolf", "hare", "mole", "newt", "toad"]
ANIMALS += ["crow", "swan", "seal", "crab", "moth"]
VERBS = ["hides", "sleeps", "hunts", "waits", "sings", "digs", "swims", "climbs", "rests", "feeds"]
PLACES = ["river", "barn", "hill", "cave", "lake"]


def column(rows: Sequence[Sequence[int]]) -> TokenColumn:
    """Texts that are token ids already."""
    ids = [token for row in rows for token in row]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return TokenColumn(np.array(ids, dtype=np.int32), ends)


def token_pairs(
    queries: Sequence[Sequence[int]],
    positives: Sequence[Sequence[int]],
    negatives: Sequence[Sequence[int]] | None = None,
    *,
    name: str = "toy",
) -> TokenisedPairs:
    given = negatives if negatives is not None else [[] for _ in queries]
    return TokenisedPairs(name, column(queries), column(positives), column(given))


def write_lines(folder: Path, lines: Iterable[str]) -> Path:
    """A dataset folder with these lines as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "pairs.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    return folder


def write_pairs(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    write_lines(folder, (json.dumps(row, ensure_ascii=False) for row in rows))
    meta = {"pairs": len(rows), "licence": "made for this test"}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def write_toy_data(root: Path) -> Path:
    """`animals`: questions, passages, negatives. `twins`: sentences that say the same."""
    animals, twins = [], []
    for number in range(300):
        animal = ANIMALS[number % len(ANIMALS)]
        verb, place = VERBS[number // 15 % len(VERBS)], PLACES[number // 150 + number % 3]
        fact = f"The {animal} {verb} near the {place}"
        animals.append(
            {
                "query": f"where does the {animal} live that {verb} by the {place} {number}",
                "positive": f"{fact}. People of the valley saw it {number} times last year.",
                "negative": f"The {verb} of another {animal} was heard far from any {place}.",
            }
        )
        twins.append(
            {"query": f"{fact} {number}", "positive": f"Near the {place}: {fact} {number}"}
        )
    write_pairs(root / "animals", animals)
    write_pairs(root / "twins", twins)
    return root
