import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from epic_retrieval.tasks import Task
from epic_training.outside import (
    Vectors,
    encode_with,
    outside_tasks,
    score_outside,
    with_foreign_demonstrations,
)
from tests.models import tiny_encoder

CLASSES = ["sing", "swim", "dig"]


def lines(path: Path, rows: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(row + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts are numbers; the nearer, the more alike."""
    root = tmp_path_factory.mktemp("outside")
    for name in ("stsb", "sickr"):
        rows = [f"{5 - n / 10}\t{n}\t{2 * n}" for n in range(20)]
        lines(root / f"sts/{name}/dev.tsv.gz", rows)
    pairs = [f"{int(n < 8)}\t10\t{10 + n}" for n in range(20)]
    lines(root / "pair_classification/mrpc/val.tsv", pairs)
    reranking = [
        {"query": "5", "positive": ["6"], "negative": ["40", "50"]},
        {"query": "7", "positive": [], "negative": ["8"]},
        {"query": "30", "positive": ["80"], "negative": ["31"]},
    ]
    lines(root / "reranking/trecqa/dev.jsonl", [json.dumps(row) for row in reranking])
    for name, held_out in (("snips", "valid.tsv"), ("tweeteval_emotion", "val.tsv")):
        texts = [f"{c}\t{40 * i + n}" for i, c in enumerate(CLASSES) for n in range(32)]
        lines(root / f"classification/{name}/train.tsv.gz", texts)
        lines(root / f"classification/{name}/{held_out}", ["sing\t3", "swim\t45", "dig\t9"])
    cosqa = root / "retrieval/cosqa"
    lines(cosqa / "dev_qrels.tsv", ["query-id\tcorpus-id\tscore", "q0\tc4\t1", "q1\tc9\t1"])
    queries = [{"_id": f"q{n}", "text": str(40 + 50 * n)} for n in range(3)]
    lines(cosqa / "dev_queries.jsonl", [json.dumps(row) for row in queries])
    corpus = [{"_id": f"c{n}", "title": "", "text": str(10 * n)} for n in range(12)]
    lines(cosqa / "corpus.jsonl.gz", [json.dumps(row) for row in corpus])
    scifact = root / "retrieval/scifact"
    grades = ["q0\tc4\t1", "q0\tc3\t1", "q1\tc9\t1", "q0\tc5\t0"]
    lines(scifact / "train_qrels.tsv", ["query-id\tcorpus-id\tscore", *grades])
    claims = [{"_id": "q0", "text": "44"}, {"_id": "q1", "text": "91"}]
    lines(scifact / "train_queries.jsonl", [json.dumps(row) for row in claims])
    titled = [{"_id": row["_id"], "title": row["text"], "text": ""} for row in corpus]
    lines(scifact / "corpus.jsonl", [json.dumps(row) for row in titled])
    return root


def by_value(texts: Sequence[str], task: Task, *, passages: bool) -> Vectors:
    angles = np.array([float(text) for text in texts]) / 100
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_each_measure(data: Path) -> None:
    scores = score_outside(by_value, outside_tasks(data))
    assert scores["stsb"] == scores["sickr"] == pytest.approx(1)
    assert scores["mrpc"] == pytest.approx(1)
    assert scores["trecqa"] == pytest.approx((1 + 1 / 2) / 2)  # the query without answer is out
    assert scores["snips"] == scores["tweeteval_emotion"] == pytest.approx(2 / 3)
    assert scores["cosqa"] == pytest.approx(1)
    first = (1 + 1 / 2) / (1 + 1 / np.log2(3))  # 44: 40 and 30 are relevant, 50 lies between
    assert scores["scifact"] == pytest.approx((first + 1) / 2)
    counted = [value for name, value in scores.items() if name not in {"mean", "scifact"}]
    assert scores["mean"] == pytest.approx(np.mean(counted))


def test_an_encoder_in_both_modes_and_foreign_demonstrations(data: Path) -> None:
    encoder = tiny_encoder("llama")
    tasks = outside_tasks(data, share=2)
    snips = next(one.task for one in tasks if one.name == "snips")
    assert [len(shown.query) > 0 for shown in snips.demonstrations] == [True] * 3
    for mode in ("none", "epic"):
        scores = score_outside(encode_with(encoder, mode), [tasks[2], tasks[4]])
        assert all(0 <= score <= 1 for score in scores.values())
    for one, other in zip(tasks, with_foreign_demonstrations(tasks), strict=True):
        assert other.task.instruction == one.task.instruction
        assert other.task.demonstrations != one.task.demonstrations
