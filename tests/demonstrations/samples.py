"""Labelled pairs of made-up facts, as many as a test wants."""

import json
from pathlib import Path

from epic_retrieval.demonstrations import Labelled, read_labelled
from epic_retrieval.tasks import Demonstration

NOUNS = "river engine garden letter planet bridge window basket camera violin"
VERBS = ["moves", "grows", "breaks", "sings", "shines"]
PLACES = ["in spring", "at night", "under water", "near Rome"]


def rows(count: int) -> list[dict[str, str]]:
    """Distinct pairs, at most 200."""
    found = []
    for number in range(count):
        noun, rest = NOUNS.split()[number % 10], number // 10
        verb, place = VERBS[rest % 5], PLACES[rest // 5 % 4]
        query = f"why a {noun} {verb} {place}"
        found.append({"query": query, "positive": f"The {noun} {verb} {place} since {number} BC."})
    return found


def write_pairs(path: Path, pairs: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return path


def labelled(folder: Path, count: int = 120) -> Labelled:
    return read_labelled(write_pairs(folder / "pairs.jsonl", rows(count)))


def pool(count: int) -> list[Demonstration]:
    return [Demonstration(row["query"], row["positive"]) for row in rows(count)]
