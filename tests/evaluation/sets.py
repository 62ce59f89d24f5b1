"""Tiny evaluation sets of all kinds on disk, and a count of what an encoder was asked for."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from epic_retrieval import Demonstration, EpicEncoder, Task

SHOWN = (Demonstration("which fish is red", "red herring"), Demonstration("a blue bird", "a jay"))
OTHERS = (Demonstration("what is small", "a mite"),)
_WORDS = "red blue small fish bird tree stone runs sleeps over under river house"
LABELS = ("animal", "plant", "thing")


def sentence(seed: int) -> str:
    """A few words, the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311 (a draw, no secret)
    return " ".join(draw.choices(_WORDS.split(), k=draw.randint(3, 8)))


def write(path: Path, rows: list[Any]) -> None:
    """JSON Lines, or fields with tabs between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(r) if isinstance(r, dict) else "\t".join(map(str, r)) for r in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def retrieval(folder: Path, *, beir: bool = False) -> Path:
    """Twenty documents, some with titles; six queries, five of them judged, with grades."""
    corpus = [
        {"_id": f"d{n}", "title": f"Title {n}" if n % 3 else "", "text": sentence(n)}
        for n in range(20)
    ]
    write(folder / "corpus.jsonl", corpus)
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": sentence(50 + n)} for n in range(6)])
    grades = [(f"q{n}", f"d{(3 * n + k) % 20}", k % 3) for n in range(5) for k in range(4)]
    header = ("query-id", "corpus-id", "score")
    write(folder / ("qrels/test.tsv" if beir else "qrels.tsv"), [header, *grades])
    return folder


def reranking(folder: Path) -> Path:
    """Five queries, one of which has no negative passage and does not count."""
    rows = [
        {
            "query": sentence(100 + n),
            "positive": [sentence(200 + 10 * n + k) for k in range(1 + n % 2)],
            "negative": [sentence(300 + 10 * n + k) for k in range(4 if n else 0)],
        }
        for n in range(5)
    ]
    write(folder / "test.jsonl", rows)
    return folder


def sts(folder: Path) -> Path:
    """Thirty pairs, scores from 0 to 5."""
    rows = [(n * 7 % 11 / 2, sentence(400 + n), sentence(500 + n)) for n in range(30)]
    write(folder / "test.tsv", rows)
    return folder


def pair_classification(folder: Path) -> Path:
    """Thirty pairs, a third of them alike."""
    rows = [(int(n % 3 == 0), sentence(600 + n), sentence(700 + n)) for n in range(30)]
    write(folder / "test.tsv", rows)
    return folder


def classification(folder: Path) -> Path:
    """Three labels; sixty texts to train on, eighteen to test."""
    for split, first, count in (("train", 800, 60), ("test", 900, 18)):
        rows = [(LABELS[n % 3], f"{sentence(first + n)} {LABELS[n % 3]}") for n in range(count)]
        write(folder / f"{split}.tsv", rows)
    return folder


def clustering(folder: Path) -> Path:
    """Three labels, thirty texts."""
    rows = [(LABELS[n % 3], f"{sentence(1000 + n)} {LABELS[n % 3]}") for n in range(30)]
    write(folder / "test.tsv", rows)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "retrieval": retrieval,
    "reranking": reranking,
    "sts": sts,
    "pair_classification": pair_classification,
    "classification": classification,
    "clustering": clustering,
}


def with_task(folder: Path, task: Task) -> Path:
    """The same folder with a task in it."""
    task.save(folder / "task.yaml")
    return folder


class Asked:
    """Which texts an encoder's two verbs were called with."""

    def __init__(self, encoder: EpicEncoder) -> None:
        self.queries: list[str] = []
        self.passages: list[str] = []
        for verb, seen in (("queries", self.queries), ("passages", self.passages)):
            self._watch(encoder, f"encode_{verb}", seen)

    def _watch(self, encoder: EpicEncoder, name: str, seen: list[str]) -> None:
        real = getattr(encoder, name)

        def watched(texts: list[str], *args: Any, **options: Any) -> Any:  # noqa: ANN401
            seen.extend(texts)
            return real(texts, *args, **options)

        setattr(encoder, name, watched)
