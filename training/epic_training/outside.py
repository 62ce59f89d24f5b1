"""How well an encoder does on tasks that it was not trained for, on their development splits.

Similarity, pairs, reranking, classification and retrieval, by their usual measures. A recipe is
chosen by these and by the held-out training queries; test splits are never read. Files are those of
the project's folder of real data (`sts/`, `reranking/`, ...). Knows nothing of training.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.prompt import Mode
from epic_retrieval.tasks import Demonstration, Task, load_task

Vectors = NDArray[np.float32]

_CUTOFF = 10
_PER_CLASS = 30  # training texts that a class's mean is taken of
_MORE_PASSAGES = 1000  # of the corpus, beside those that answer a query


class Encode(Protocol):
    """Texts to vectors (n, d) of length 1, as queries of a task or as its passages."""

    def __call__(self, texts: Sequence[str], task: Task, *, passages: bool) -> Vectors:
        """The vectors."""
        ...


@dataclass(frozen=True)
class OutsideTask:
    """A development task.

    Attributes:
        name: of the data set.
        task: with demonstrations from its training split, or those of a built-in task.
        score: from an encoder and that task to a number from 0 to 1, higher is better.
        counted: in the mean.
    """

    name: str
    task: Task
    score: Callable[[Encode, Task], float]
    counted: bool = True


def outside_tasks(data: Path, share: int = 1) -> list[OutsideTask]:
    """The development tasks in a folder of real data.

    Args:
        data: the folder.
        share: take every so manieth row, for a quick look.
    """
    similar, web = load_task("semantic-similarity"), load_task("web-search")
    return [
        OutsideTask("stsb", similar, _similarity(data / "sts/stsb/dev.tsv", share)),
        OutsideTask("sickr", similar, _similarity(data / "sts/sickr/dev.tsv", share)),
        OutsideTask("mrpc", similar, _pairs(data / "pair_classification/mrpc/val.tsv", share)),
        OutsideTask("trecqa", web, _reranking(data / "reranking/trecqa", share)),
        _classification(data / "classification/snips", "valid.tsv", share),
        _classification(data / "classification/tweeteval_emotion", "val.tsv", share),
        OutsideTask(
            "cosqa", load_task("code-search"), _retrieval(data / "retrieval/cosqa", "dev", share)
        ),
        # Came last, when recipes had been chosen by the others.
        OutsideTask(
            "scifact", web, _retrieval(data / "retrieval/scifact", "train", share), counted=False
        ),
    ]


def with_foreign_demonstrations(tasks: Sequence[OutsideTask]) -> list[OutsideTask]:
    """The tasks, each with another kind of task's demonstrations: a model that reads them errs."""
    found = []
    for number, one in enumerate(tasks):
        later = [*tasks[number + 1 :], *tasks[:number]]
        other = next(
            (two.task for two in later if two.task.demonstrations != one.task.demonstrations),
            one.task,
        )
        found.append(replace(one, task=one.task.with_demonstrations(other.demonstrations)))
    return found


def encode_with(encoder: EpicEncoder, mode: Mode) -> Encode:
    """An encoder in one mode."""

    def encode(texts: Sequence[str], task: Task, *, passages: bool) -> Vectors:
        run = encoder.encode_passages if passages else encoder.encode_queries
        return run(texts, task, mode, show_progress=False)

    return encode


def score_outside(encode: Encode, tasks: Sequence[OutsideTask]) -> dict[str, float]:
    """Score by task name, and the `mean` of those that are counted."""
    scores = {one.name: one.score(encode, one.task) for one in tasks}
    counted = [scores[one.name] for one in tasks if one.counted]
    return scores | {"mean": float(np.mean(counted))}


def _both(encode: Encode, task: Task, rows: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """(n,) cosines of the texts in columns 1 and 2."""
    left = encode([row[1] for row in rows], task, passages=False)
    right = encode([row[2] for row in rows], task, passages=not task.symmetric)
    cosines: NDArray[np.float32] = (left * right).sum(axis=1)
    return cosines


def _similarity(path: Path, share: int) -> Callable[[Encode, Task], float]:
    def score(encode: Encode, task: Task) -> float:
        rows = list(_table(path))[::share]
        return _spearman(_both(encode, task, rows), np.array([float(row[0]) for row in rows]))

    return score


def _spearman(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Correlation of ranks; equal values share the mean of theirs."""

    def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        mean: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
        return mean

    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def _pairs(path: Path, share: int) -> Callable[[Encode, Task], float]:
    def score(encode: Encode, task: Task) -> float:
        rows = list(_table(path))[::share]
        return _average_precision(
            _both(encode, task, rows), np.array([row[0] == "1" for row in rows])
        )

    return score


def _average_precision(scores: NDArray[Any], relevant: NDArray[np.bool_]) -> float:
    hits = relevant[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def _reranking(folder: Path, share: int) -> Callable[[Encode, Task], float]:
    def score(encode: Encode, task: Task) -> float:
        rows = [row for row in _lines(folder / "dev.jsonl") if row["positive"] and row["negative"]]
        rows = rows[::share]
        queries = encode([row["query"] for row in rows], task, passages=False)
        candidates = [row["positive"] + row["negative"] for row in rows]
        passages = encode([text for texts in candidates for text in texts], task, passages=True)
        found, start = [], 0
        for row, query, texts in zip(rows, queries, candidates, strict=True):
            part = passages[start : start + len(texts)]
            relevant = np.arange(len(texts)) < len(row["positive"])
            found.append(_average_precision(part @ query, relevant))
            start += len(texts)
        return float(np.mean(found))

    return score


def _classification(folder: Path, held_out: str, share: int) -> OutsideTask:
    """Accuracy of the class whose mean is nearest; the demonstrations are texts of one class."""
    train = list(_table(folder / "train.tsv"))
    labels = sorted({row[0] for row in train})
    by_label = {label: [row[1] for row in train if row[0] == label] for label in labels}
    shown = [Demonstration(*by_label[label][_PER_CLASS : _PER_CLASS + 2]) for label in labels[:5]]
    instruction = "Retrieve texts of the same category"
    task = Task(folder.name, instruction, tuple(shown), symmetric=True)

    def score(encode: Encode, task: Task) -> float:
        rows = list(_table(folder / held_out))[::share]
        known = [(label, text) for label in labels for text in by_label[label][:_PER_CLASS]]
        vectors = encode([text for _, text in known], task, passages=False)
        means = np.stack(
            [vectors[[one == label for one, _ in known]].mean(axis=0) for label in labels]
        )
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        asked = encode([row[1] for row in rows], task, passages=False)
        right = (asked @ means.T).argmax(axis=1) == [labels.index(row[0]) for row in rows]
        return float(right.mean())

    return OutsideTask(folder.name, task, score)


def _retrieval(folder: Path, split: str, share: int) -> Callable[[Encode, Task], float]:
    """nDCG@10 among the passages that answer some query, and some more."""

    def score(encode: Encode, task: Task) -> float:
        answers: dict[str, set[str]] = {}
        for query, passage, grade in list(_table(folder / f"{split}_qrels.tsv"))[1:]:
            if float(grade) > 0:
                answers.setdefault(query, set()).add(passage)
        queries = [
            row for row in _lines(folder / f"{split}_queries.jsonl") if row["_id"] in answers
        ]
        queries = queries[::share]
        wanted = set().union(*(answers[row["_id"]] for row in queries))
        corpus = {row["_id"]: row for row in _lines(folder / "corpus.jsonl")}
        others = [one for one in corpus if one not in wanted][: _MORE_PASSAGES // share]
        ids = [*sorted(wanted), *others]
        texts = ["\n".join(filter(None, (corpus[i]["title"], corpus[i]["text"]))) for i in ids]
        asked = encode([row["text"] for row in queries], task, passages=False)
        scores = asked @ encode(texts, task, passages=True).T
        place = {one: number for number, one in enumerate(ids)}
        return float(
            np.mean(
                [
                    _ndcg(own, [place[one] for one in answers[row["_id"]]])
                    for row, own in zip(queries, scores, strict=True)
                ]
            )
        )

    return score


def _ndcg(scores: NDArray[Any], relevant: Sequence[int]) -> float:
    """nDCG@10 of passages that are relevant or not; ties count against the model."""
    ranks = np.array([(scores >= scores[one]).sum() for one in relevant])
    gains = np.where(ranks <= _CUTOFF, 1 / np.log2(ranks + 1), 0)
    best = 1 / np.log2(np.arange(min(_CUTOFF, len(relevant))) + 2)
    return float(gains.sum() / best.sum())


def _table(path: Path) -> Iterator[list[str]]:
    with _open(path) as lines:
        yield from csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        for line in lines:
            yield json.loads(line)


def _open(path: Path) -> Any:  # noqa: ANN401 (text of a file or of a .gz)
    """The file, or the .gz beside it."""
    if path.is_file():
        return path.open(encoding="utf-8", newline="")
    return gzip.open(f"{path}.gz", "rt", encoding="utf-8", newline="")
