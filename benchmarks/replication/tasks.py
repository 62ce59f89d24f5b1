"""The tasks that the study reports on: six families, none of them trained on.

Every task is cut to a size that lets a small model be scored in seconds, by a fixed draw. Its
demonstrations come from rows that are scored nowhere. Knows nothing of models.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from epic_retrieval import Demonstration, InputError, Task

QUERIES = 150
PASSAGES = 600
PAIRS = 600
PER_LABEL = 16
TEXTS = 800
_POOL = 200
_FEWEST = 40  # queries held back for demonstrations where a set has no training queries


@dataclass(frozen=True)
class Ranking:
    """Queries, each with graded passages, and what is searched.

    Attributes:
        queries: their texts.
        passages: texts, the same for all queries.
        candidates: per query the rows of `passages` to be ordered; None: all.
        grades: per query, row of `passages` to relevance above 0.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    candidates: Sequence[Sequence[int]] | None
    grades: Sequence[Mapping[int, int]]


@dataclass(frozen=True)
class Pairs:
    """Two texts each and what their cosine is compared with: a grade, or 0 and 1."""

    left: Sequence[str]
    right: Sequence[str]
    targets: Sequence[float]


@dataclass(frozen=True)
class Labelled:
    """Texts and labels; without training rows they are clustered."""

    texts: Sequence[str]
    labels: Sequence[str]
    train_texts: Sequence[str] = ()
    train_labels: Sequence[str] = ()


@dataclass(frozen=True)
class UnseenTask:
    """One task: what is scored, and pairs to show that are not.

    Attributes:
        task: name and instruction, no demonstrations.
        family: as mteb names it.
        data: the rows that are scored.
        pool: pairs to show.
    """

    task: Task
    family: str
    data: Ranking | Pairs | Labelled
    pool: Sequence[Demonstration]

    def draw(self, seed: int, count: int) -> list[Demonstration]:
        """`count` pairs of the pool, different in query and, where it can be, in passage."""
        rng = np.random.default_rng([seed, len(self.pool)])
        order = [self.pool[int(i)] for i in rng.permutation(len(self.pool))]
        chosen: dict[str, Demonstration] = {}
        for pair in order:
            chosen.setdefault(pair.passage, pair)
        rest = [pair for pair in order if chosen[pair.passage] is not pair]
        return [*chosen.values(), *rest][:count]


def unseen_tasks(data: Path) -> list[UnseenTask]:
    """All tasks, from the folder with retrieval/, reranking/, sts/ and so on."""
    tasks = [
        *(_retrieval(data / "retrieval" / name, text) for name, text in _RETRIEVAL.items()),
        _reranking(data / "reranking" / "trecqa"),
        *(_pairs(data, path, split) for path, split in _PAIRED.items()),
        *(_classification(data / "classification" / name, text) for name, text in _LABELS.items()),
        *(_clustering(data / "clustering" / name, text) for name, text in _CLUSTERS.items()),
    ]
    return [replace(one, pool=_unscored(one)) for one in tasks]


def _unscored(one: UnseenTask) -> list[Demonstration]:
    """The pool without pairs whose texts are asked for: SICK has its sentences in both splits."""
    asked = {
        text
        for texts in (getattr(one.data, name, ()) for name in ("queries", "left", "right", "texts"))
        for text in texts
    }
    return [pair for pair in one.pool if not {pair.query, pair.passage} & asked][:_POOL]


_RETRIEVAL = {
    "scifact": "Given a scientific claim, retrieve documents that support or refute the claim",
    "nfcorpus": "Given a question, retrieve relevant documents that best answer the question",
    "cosqa": "Given a web search query, retrieve the Python function that does it",
    "se_coffee": "Given the title of a question, retrieve answers to it",
    "squad_dev": "Given a question, retrieve Wikipedia passages that answer the question",
}
_PAIRED = {
    "sts/stsb": ("train", "test", "Retrieve semantically similar text"),
    "sts/sickr": ("train", "test", "Retrieve semantically similar text"),
    "pair_classification/mrpc": ("train", "test", "Retrieve sentences with the same meaning"),
}
_LABELS = {
    "banking77": "Given an online banking query, find the corresponding intents",
    "snips": "Given an utterance to a voice assistant, find its intent",
    "trec6": "Given a question, find the type of its answer",
    "tweeteval_emotion": "Classify the emotion expressed in the given tweet",
}
_CLUSTERS = {
    "stackoverflow_titles": "Identify the topic of the given titles of programming questions",
    "20newsgroups_subject": "Identify the topic of the given subjects of newsgroup messages",
}
_TREC = {  # the file has numbers
    "0": "abbreviation",
    "1": "entity",
    "2": "description",
    "3": "human",
    "4": "location",
    "5": "number",
}


def _retrieval(folder: Path, instruction: str) -> UnseenTask:
    """A random part of the passages, and all that are relevant to the queries that are asked."""
    rng = np.random.default_rng(0)
    corpus = {row["_id"]: _content(row) for row in _jsonl(folder / "corpus.jsonl")}
    texts, judged = _questions(folder, "")
    asked = [str(name) for name in rng.permutation(sorted(judged))]
    source = next((part for part in ("train_", "dev_") if _is_there(folder, part)), None)
    if source:
        known_texts, known = _questions(folder, source)
    else:
        held, asked = asked[:_FEWEST], asked[_FEWEST:]
        known_texts, known = texts, {name: judged[name] for name in held}
    asked = asked[:QUERIES]
    needed = {row for name in asked for row in judged[name] if row in corpus}
    others = [row for row in rng.permutation(sorted(corpus)) if row not in needed]
    rows = [*sorted(needed), *map(str, others)][: max(PASSAGES, len(needed))]
    place = {row: number for number, row in enumerate(rows)}
    pool = [
        Demonstration(known_texts[name], corpus[max(grades, key=lambda row: grades[row])])
        for name, grades in sorted(known.items())
        if any(row in corpus for row in grades)
    ]
    grades = [
        {place[row]: grade for row, grade in judged[name].items() if row in place} for name in asked
    ]
    ranking = Ranking([texts[name] for name in asked], [corpus[row] for row in rows], None, grades)
    return UnseenTask(Task(folder.name, instruction), "Retrieval", ranking, pool)


def _reranking(folder: Path) -> UnseenTask:
    def usable(split: str) -> list[dict[str, Any]]:
        rows = _jsonl(folder / f"{split}.jsonl")
        return [row for row in rows if row["positive"] and row["negative"]]

    passages: list[str] = []
    candidates, grades = [], []
    rows = usable("test")
    for row in rows:
        first = len(passages)
        passages += [*row["positive"], *row["negative"]]
        candidates.append(range(first, len(passages)))
        grades.append({first + number: 1 for number in range(len(row["positive"]))})
    pool = [Demonstration(row["query"], row["positive"][0]) for row in usable("train")]
    ranking = Ranking([row["query"] for row in rows], passages, candidates, grades)
    instruction = "Given a question, retrieve sentences that answer it"
    return UnseenTask(Task(folder.name, instruction), "Reranking", ranking, pool)


def _pairs(data: Path, path: str, split: tuple[str, str, str]) -> UnseenTask:
    train, test, instruction = split
    folder = data / path
    family = "STS" if path.startswith("sts/") else "PairClassification"
    rows = _drawn([row for row in _tsv(folder / f"{test}.tsv") if len(row) == 3], PAIRS)
    known = [row for row in _tsv(folder / f"{train}.tsv") if len(row) == 3]
    best = max(float(row[0]) for row in known)
    alike = [Demonstration(a, b) for grade, a, b in known if float(grade) >= 0.9 * best and a != b]
    scored = Pairs([r[1] for r in rows], [r[2] for r in rows], [float(r[0]) for r in rows])
    task = Task(folder.name, instruction, symmetric=True)
    return UnseenTask(task, family, scored, alike)


def _classification(folder: Path, instruction: str) -> UnseenTask:
    known, rows = _labelled(folder, "train"), _drawn(_labelled(folder, "test"), PAIRS)
    rng = np.random.default_rng(0)
    by_label: dict[str, list[str]] = {}
    for number in rng.permutation(len(known)):
        label, text = known[int(number)]
        by_label.setdefault(label, []).append(text)
    train = [(label, one) for label, texts in by_label.items() for one in texts[:PER_LABEL]]
    pool = [
        Demonstration(one, _worded(folder, label))
        for label, texts in by_label.items()
        for one in texts[PER_LABEL : PER_LABEL + max(1, _POOL // len(by_label))]
    ]
    data = Labelled(
        [text for _, text in rows],
        [label for label, _ in rows],
        [text for _, text in train],
        [label for label, _ in train],
    )
    task = Task(folder.name, instruction, symmetric=True)
    return UnseenTask(task, "Classification", data, pool)


def _clustering(folder: Path, instruction: str) -> UnseenTask:
    file = folder / "all.tsv"
    rows = _drawn(_labelled(folder, "all" if _present(file) else "test"), TEXTS + _POOL)
    pool = [Demonstration(text, _worded(folder, label)) for label, text in rows[TEXTS:]]
    data = Labelled([text for _, text in rows[:TEXTS]], [label for label, _ in rows[:TEXTS]])
    return UnseenTask(Task(folder.name, instruction, symmetric=True), "Clustering", data, pool)


def _worded(folder: Path, label: str) -> str:
    named = _TREC.get(label, label) if folder.name == "trec6" else label
    return named.replace("_", " ")


def _labelled(folder: Path, split: str) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in _tsv(folder / f"{split}.tsv") if row[1].strip()]


def _questions(folder: Path, part: str) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Queries by id, and of those that have any their relevant passages with grades."""
    texts = {row["_id"]: row["text"] for row in _jsonl(folder / f"{part}queries.jsonl")}
    judged: dict[str, dict[str, int]] = {}
    for query, passage, grade in _tsv(folder / f"{part}qrels.tsv")[1:]:
        if int(grade) > 0 and query in texts:
            judged.setdefault(query, {})[passage] = int(grade)
    return texts, judged


def _is_there(folder: Path, part: str) -> bool:
    return _present(folder / f"{part}queries.jsonl")


def _content(row: Mapping[str, str]) -> str:
    return "\n".join(part for part in (row.get("title", ""), row["text"]) if part) or "-"


def _drawn(rows: Sequence[Any], most: int) -> list[Any]:
    order = np.random.default_rng(0).permutation(len(rows))[:most]
    return [rows[int(number)] for number in order]


def _present(path: Path) -> bool:
    return path.is_file() or Path(f"{path}.gz").is_file()


def _lines(path: Path) -> list[str]:
    if not _present(path):
        raise InputError(f"{path} is not there, nor {path.name}.gz: --data is the folder with sts/")
    opener: Callable[..., Any] = open if path.is_file() else gzip.open
    with opener(path if path.is_file() else f"{path}.gz", "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines if line.strip()]


def _jsonl(path: Path) -> Iterable[dict[str, Any]]:
    return [json.loads(line) for line in _lines(path)]


def _tsv(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in _lines(path)]
