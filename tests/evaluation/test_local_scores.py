"""Scores of local sets, beside what the same vectors give by hand."""

import random
from pathlib import Path
from typing import Any

import ir_measures
import mteb
import numpy as np
import pytest
from ir_measures import AP, Qrel, ScoredDoc, nDCG
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, v_measure_score

from epic_retrieval import EpicEncoder, Task
from epic_retrieval.evaluation.encoder import MtebEncoder
from epic_retrieval.evaluation.instructions import Instructions
from epic_retrieval.evaluation.local import find_local
from epic_retrieval.evaluation.local_files import read_rerankings
from epic_retrieval.evaluation.local_tasks import local_task
from epic_retrieval.index import read_corpus
from tests.evaluation import sets
from tests.models import tiny_encoder

ASYMMETRIC = Task("t", "Find what answers", sets.SHOWN)
SYMMETRIC = Task("t", "Find what means the same", sets.SHOWN, symmetric=True)
Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def encoder() -> EpicEncoder:
    return tiny_encoder()


def score(folder: Path, encoder: EpicEncoder, task: Task) -> float:
    found = find_local(str(folder))
    model = MtebEncoder(encoder, "epic", Instructions(tasks={found.name: task}))
    result = mteb.evaluate(model, local_task(found), cache=None, show_progress_bar=False)
    return float(result.task_results[0].get_score())


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def encoded(encoder: EpicEncoder, texts: list[str], task: Task) -> Vectors:
    return encoder.encode_queries(texts, task, "epic")


@pytest.mark.parametrize("beir", [False, True])
def test_retrieval(beir: bool, encoder: EpicEncoder, tmp_path: Path) -> None:
    folder = sets.retrieval(tmp_path / "set", beir=beir)
    passages = list(read_corpus(folder))
    documents = encoder.encode_passages([passage.content for passage in passages])
    judged = rows(folder / ("qrels/test.tsv" if beir else "qrels.tsv"))[1:]
    qrels = [Qrel(query, passage, int(grade)) for query, passage, grade in judged]
    run = [
        ScoredDoc(f"q{n}", passage.id, float(value))
        for n in range(5)
        for passage, value in zip(
            passages,
            documents @ encoded(encoder, [sets.sentence(50 + n)], ASYMMETRIC)[0],
            strict=True,
        )
    ]
    by_hand = ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
    # mteb rounds the scores of rankings to five places.
    assert score(folder, encoder, ASYMMETRIC) == pytest.approx(by_hand, abs=5.1e-6)


@pytest.mark.parametrize("task", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
def test_reranking(task: Task, encoder: EpicEncoder, tmp_path: Path) -> None:
    folder = sets.reranking(tmp_path / "set")
    qrels, run = [], []
    for number, row in enumerate(read_rerankings(folder / "test.jsonl")):
        if not row.negative:
            continue
        query = encoded(encoder, [row.query], task)[0]
        texts = [*row.positive, *row.negative]
        for place, vector in enumerate(encoder.encode_passages(texts, task, "epic")):
            qrels.append(Qrel(str(number), str(place), int(place < len(row.positive))))
            run.append(ScoredDoc(str(number), str(place), float(vector @ query)))
    by_hand = ir_measures.calc_aggregate([AP], qrels, run)[AP]
    assert len({qrel.query_id for qrel in qrels}) == 4
    assert score(folder, encoder, task) == pytest.approx(by_hand, abs=5.1e-6)


def similarities(encoder: EpicEncoder, pairs: list[list[str]]) -> Vectors:
    first, second = (encoded(encoder, [row[side] for row in pairs], SYMMETRIC) for side in (1, 2))
    products: Vectors = (first * second).sum(axis=1)
    return products


def test_sts(encoder: EpicEncoder, tmp_path: Path) -> None:
    folder = sets.sts(tmp_path / "set")
    pairs = rows(folder / "test.tsv")
    by_hand = spearmanr([float(row[0]) for row in pairs], similarities(encoder, pairs)).statistic
    assert score(folder, encoder, SYMMETRIC) == pytest.approx(by_hand, abs=1e-6)


def test_pair_classification(encoder: EpicEncoder, tmp_path: Path) -> None:
    folder = sets.pair_classification(tmp_path / "set")
    pairs = rows(folder / "test.tsv")
    labels = [int(row[0]) for row in pairs]
    by_hand = average_precision_score(labels, similarities(encoder, pairs))
    found = find_local(str(folder))
    model = MtebEncoder(encoder, "epic", Instructions(tasks={found.name: SYMMETRIC}))
    result = mteb.evaluate(model, local_task(found), cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    assert scores["cosine_ap"] == pytest.approx(by_hand, abs=1e-6)
    # Vectors of length 1 make all distances agree but the Manhattan one, over which it is the best.
    assert scores["main_score"] == max(scores["cosine_ap"], scores["manhattan_ap"])


def test_classification(encoder: EpicEncoder, tmp_path: Path) -> None:
    folder = sets.classification(tmp_path / "set")
    trained, tested = rows(folder / "train.tsv"), rows(folder / "test.tsv")
    vectors = [encoded(encoder, [row[1] for row in part], SYMMETRIC) for part in (trained, tested)]
    accuracies = []
    order = list(range(len(trained)))
    for _ in range(10):  # eight texts a label, drawn anew in each of ten experiments
        np.random.RandomState(42).shuffle(order)
        chosen: dict[str, list[int]] = {label: [] for label in sets.LABELS}
        for row in order:
            if len(chosen[trained[row][0]]) < 8:
                chosen[trained[row][0]].append(row)
        picked = [row for row in order if row in chosen[trained[row][0]]]
        classifier = LogisticRegression(max_iter=100, random_state=42)
        classifier.fit(vectors[0][picked], [trained[row][0] for row in picked])
        predicted = classifier.predict(vectors[1])
        accuracies.append(accuracy_score([row[0] for row in tested], predicted))
    by_hand = float(np.mean(accuracies))
    assert score(folder, encoder, SYMMETRIC) == pytest.approx(by_hand, abs=1e-6)


def test_clustering(encoder: EpicEncoder, tmp_path: Path) -> None:
    folder = sets.clustering(tmp_path / "set")
    texts = rows(folder / "test.tsv")
    vectors = encoded(encoder, [row[1] for row in texts], SYMMETRIC)
    labels = np.array([row[0] for row in texts])
    draw = random.Random(42)  # noqa: S311 (mteb's)
    order = draw.sample(range(len(texts)), k=len(texts))
    vectors, labels = vectors[order], labels[order]
    means: Any = MiniBatchKMeans(
        n_clusters=3, batch_size=512, init="k-means++", n_init=1, random_state=42
    )
    values = []
    for _ in range(10):
        drawn = draw.choices(range(len(texts)), k=16_384)
        values.append(v_measure_score(labels[drawn], means.fit_predict(vectors[drawn])))
    by_hand = float(np.mean(values))
    assert score(folder, encoder, SYMMETRIC) == pytest.approx(by_hand, abs=1e-6)
