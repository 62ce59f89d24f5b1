"""One score per task, as mteb defines its main score for each family.

nDCG@10, MAP, Spearman's correlation of cosines, average precision of cosines, accuracy of logistic
regression, V-measure of k-means. Nothing is random but for fixed seeds.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, ndcg_score, v_measure_score

from benchmarks.replication.tasks import Labelled, Pairs, Ranking, UnseenTask
from epic_retrieval import EpicEncoder, Task
from epic_retrieval.prompt import Mode

Vectors = NDArray[np.float32]
_CLUSTERINGS = 3


class Scorer:
    """Scores one encoder; passages of retrieval tasks are encoded once."""

    def __init__(self, encoder: EpicEncoder) -> None:
        self._encoder = encoder
        self._passages: dict[str, Vectors] = {}

    def score(self, unseen: UnseenTask, task: Task, mode: Mode) -> float:
        """The main score, in percent.

        Args:
            unseen: what is scored.
            task: its task, with the demonstrations to show.
            mode: how they are shown.
        """
        data = unseen.data
        if isinstance(data, Ranking):
            return 100 * self._ranking(unseen.family, data, task, mode)
        if isinstance(data, Pairs):
            left = self._queries(data.left, task, mode)
            cosines = (left * self._queries(data.right, task, mode)).sum(axis=1)
            if unseen.family == "STS":
                return 100 * float(spearmanr(cosines, data.targets).statistic)
            return 100 * float(average_precision_score(data.targets, cosines))
        return 100 * self._labelled(data, task, mode)

    def _queries(self, texts: object, task: Task, mode: Mode) -> Vectors:
        return self._encoder.encode_queries(list(texts), task, mode, show_progress=False)  # type: ignore[call-overload]

    def _ranking(self, family: str, data: Ranking, task: Task, mode: Mode) -> float:
        if task.name not in self._passages:
            self._passages[task.name] = self._encoder.encode_passages(
                list(data.passages), task, mode, show_progress=False
            )
        passages = self._passages[task.name]
        queries = self._queries(data.queries, task, mode)
        values = []
        for number, grades in enumerate(data.grades):
            rows = np.arange(len(passages)) if data.candidates is None else data.candidates[number]
            chosen = np.asarray(rows)
            cosines = passages[chosen] @ queries[number]
            truth = np.array([grades.get(int(row), 0) for row in chosen])
            if family == "Reranking":
                values.append(average_precision_score(truth > 0, cosines))
            else:
                values.append(ndcg_score(truth[None], cosines[None], k=10))
        return float(np.mean(values))

    def _labelled(self, data: Labelled, task: Task, mode: Mode) -> float:
        vectors = self._queries(data.texts, task, mode)
        if data.train_texts:
            known = self._queries(data.train_texts, task, mode)
            model = LogisticRegression(max_iter=200, C=10.0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a hundred iterations are mteb's own limit
                model.fit(known, data.train_labels)
            return float(model.score(vectors, data.labels))
        count = len(set(data.labels))
        scores = [
            v_measure_score(
                data.labels,
                MiniBatchKMeans(count, n_init="auto", random_state=seed).fit_predict(vectors),
            )
            for seed in range(_CLUSTERINGS)
        ]
        return float(np.mean(scores))
