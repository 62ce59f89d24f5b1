"""Small data sets on disk in every format, and training sets around them."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from epic_retrieval.tasks import Task
from epic_training.data.mix import TrainingSet
from epic_training.data.plan import TextBatch
from epic_training.data.store import open_rows

# Where processes that tests start find the packages.
ROOT = Path(__file__).resolve().parents[3]
Row = Mapping[str, object]
MIXED = "Wie geht's? 你好 🙂 — مرحبا \u2028 e\u0301 \U0001f468\u200d\U0001f469"


def lines_of(rows: Iterable[Row]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def write_text(path: Path, content: str | bytes) -> Path:
    """Compressed when the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_jsonl(path: Path, rows: Iterable[Row]) -> Path:
    return write_text(path, "".join(line + "\n" for line in lines_of(rows)))


def pair_rows(count: int, *, negatives: bool = False, name: str = "") -> list[Row]:
    rows: list[Row] = []
    for number in range(count):
        row = {"query": f"{name} question {number}?", "positive": f"{name} passage {number}."}
        rows.append(row | ({"negative": f"{name} other {number}."} if negatives else {}))
    return rows


def flag_rows(count: int, *, positives: int = 1, negatives: int = 4, **more: object) -> list[Row]:
    """FlagEmbedding rows with scores; extra keys stand in every row."""
    rows: list[Row] = []
    for number in range(count):
        row: dict[str, object] = {
            "query": f"question {number}?",
            "pos": [f"passage {number}-{n}" for n in range(positives)],
            "neg": [f"other {number}-{n}" for n in range(negatives)],
            "pos_scores": [number + n / 8 for n in range(positives)],
            "neg_scores": [-number - n / 8 for n in range(negatives)],
        }
        rows.append(row | more)
    return rows


def training_set(
    folder: Path,
    rows: Sequence[Row],
    *,
    name: str = "toy",
    format: str = "pairs",  # noqa: A002
    instructions: Sequence[str] = ("Given a question, retrieve passages that answer it",),
    ratio: float = 1.0,
    symmetric: bool = False,
    in_batch_negatives: bool = True,
    held_out: Sequence[int] = (),
) -> TrainingSet:
    source = write_jsonl(folder / f"{name}.jsonl", rows)
    store = open_rows(source, format, folder / "cache")
    train = np.setdiff1d(np.arange(len(rows)), np.array(held_out, dtype=int))
    tasks = [Task(f"{name}-{n}", text, symmetric=symmetric) for n, text in enumerate(instructions)]
    held = np.array(held_out, dtype=np.int64)
    return TrainingSet(name, tuple(tasks), store, train, held, ratio, in_batch_negatives)


def toy_sets(folder: Path) -> list[TrainingSet]:
    """Three sets: negatives with scores, pairs with two instructions and a ratio, a small one."""
    return [
        training_set(
            folder, flag_rows(40, positives=3), name="scored", format="flagembedding",
            held_out=[3, 4],
        ),
        training_set(folder, pair_rows(50), name="plain", instructions=["a", "b"], ratio=0.5),
        training_set(folder, pair_rows(5, negatives=True), name="small", in_batch_negatives=False),
    ]  # fmt: skip


def digest(batches: Sequence[TextBatch]) -> str:
    return hashlib.sha256(repr(list(batches)).encode()).hexdigest()
