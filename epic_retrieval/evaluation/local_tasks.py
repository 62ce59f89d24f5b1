"""Local sets as tasks of mteb: its own scoring, and nothing fetched from anywhere.

What a folder holds is found by `local`, its files are read by `local_files`.
"""

import logging
from typing import Any, ClassVar, cast

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata, TaskType

from epic_retrieval.errors import InputError
from epic_retrieval.evaluation import local_files
from epic_retrieval.evaluation.local import TRAIN_SPLIT, Kind, LocalSet
from epic_retrieval.index import read_corpus

logger = logging.getLogger(__name__)

_LONGEST = 10_000_000  # characters of a passage: it is the model that cuts

# mteb's name of a kind, and the score that stands for it in the paper's tables.
_TYPES: dict[Kind, tuple[TaskType, str]] = {
    "retrieval": ("Retrieval", "ndcg_at_10"),
    "reranking": ("Reranking", "map_at_1000"),
    "sts": ("STS", "cosine_spearman"),
    "pair_classification": ("PairClassification", "max_ap"),
    "classification": ("Classification", "accuracy"),
    "clustering": ("Clustering", "v_measure"),
}


def local_task(found: LocalSet) -> AbsTask:
    """A task of mteb for a local set; its data is read when mteb, or `load_data`, asks for it.

    Raises:
        OSError: a file cannot be read for its digest.
    """
    task_type, main_score = _TYPES[found.kind]
    metadata = TaskMetadata(
        name=found.name,
        description=f"{found.kind} on the local set {found.name}",
        dataset={"path": f"local/{found.name}", "revision": found.fingerprint()},
        type=task_type,
        category="t2c" if found.kind in {"classification", "clustering"} else "t2t",
        modalities=["text"],
        eval_splits=[found.split],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        prompt=None if found.task is None else found.task.instruction,
    )
    # mteb looks for the metadata on the class, and takes it off an instance with its data.
    made = type("LocalTask", (_CLASSES[found.kind],), {"metadata": metadata, "found": found})
    return cast("AbsTask", made())


class _LocalRetrieval(AbsTaskRetrieval):
    found: ClassVar[LocalSet]

    def load_data(self, *_args: object, **_options: Any) -> None:  # noqa: ANN401 (mteb's)
        """Corpus, judged queries and judgements."""
        if self.data_loaded:
            return
        found = self.found
        corpus_file, queries_file, judgements_file = found.files
        passages = list(
            read_corpus(
                corpus_file,
                max_chars=_LONGEST,
                skip_empty=found.skip_empty,
            )
        )
        queries = local_files.read_queries(queries_file)
        grades = local_files.read_judgements(judgements_file)
        local_files.check_known(judgements_file, "queries", grades, queries)
        if not found.skip_empty:  # else a passage that was left out may well be judged
            known = {passage.id: None for passage in passages}
            judged = dict.fromkeys(name for graded in grades.values() for name in graded)
            local_files.check_known(judgements_file, "passages", judged, known)
        corpus = [{"id": one.id, "title": one.title, "text": one.text} for one in passages]
        asked = [{"id": name, "text": queries[name]} for name in grades]
        self.dataset = _retrieval_data(found.split, corpus, asked, grades, None)
        self.data_loaded = True


class _LocalReranking(AbsTaskRetrieval):
    found: ClassVar[LocalSet]

    def load_data(self, *_args: object, **_options: Any) -> None:  # noqa: ANN401 (mteb's)
        """Queries that have both kinds of passages: a list of one kind has only one order."""
        if self.data_loaded:
            return
        (path,) = self.found.files
        rows = local_files.read_rerankings(path)
        kept = [row for row in rows if row.positive and row.negative]
        if not kept:
            raise InputError(f"{path}: no query has both positive and negative passages")
        if len(kept) < len(rows):
            logger.info("%s: %d of %d queries have both kinds", path, len(kept), len(rows))
        corpus, asked, grades, ranked = [], [], {}, {}
        for number, row in enumerate(kept):
            texts = (*row.positive, *row.negative)
            # Of equal scores, the metric takes the last name first: never the positive one.
            names = [f"{number:06d}-{place:06d}" for place in range(len(texts))]
            corpus += [{"id": n, "title": "", "text": t} for n, t in zip(names, texts, strict=True)]
            asked.append({"id": f"{number:06d}", "text": row.query})
            grades[f"{number:06d}"] = {
                name: int(place < len(row.positive)) for place, name in enumerate(names)
            }
            ranked[f"{number:06d}"] = names
        self.dataset = _retrieval_data(self.found.split, corpus, asked, grades, ranked)
        self.data_loaded = True


class _LocalSTS(AbsTaskSTS):
    found: ClassVar[LocalSet]

    def load_data(self, *_args: object, **_options: Any) -> None:  # noqa: ANN401 (mteb's)
        """Pairs of texts and their scores, on whatever scale."""
        if self.data_loaded:
            return
        scores, first, second = zip(
            *local_files.read_scored_pairs(self.found.files[0]), strict=True
        )
        columns = {"sentence1": first, "sentence2": second, "score": scores}
        self.dataset = _splits({self.found.split: columns})
        self.data_loaded = True


class _LocalPairClassification(AbsTaskPairClassification):
    found: ClassVar[LocalSet]

    def load_data(self, *_args: object, **_options: Any) -> None:  # noqa: ANN401 (mteb's)
        """Pairs of texts, and whether they belong together."""
        if self.data_loaded:
            return
        labels, first, second = zip(
            *local_files.read_labelled_pairs(self.found.files[0]), strict=True
        )
        columns = {"sentence1": first, "sentence2": second, "labels": labels}
        self.dataset = _splits({self.found.split: columns})
        self.data_loaded = True


class _LocalClassification(AbsTaskClassification):
    found: ClassVar[LocalSet]

    def load_data(self, *_args: object, **_options: Any) -> None:  # noqa: ANN401 (mteb's)
        """Texts and the numbers of their labels, to train on and to test."""
        if self.data_loaded:
            return
        tested, trained = (local_files.read_labelled(path) for path in self.found.files)
        names = sorted({label for label, _ in trained})
        numbers = {name: number for number, name in enumerate(names)}
        strange = sorted({label for label, _ in tested} - set(names))
        if strange:
            raise InputError(
                f"{self.found.files[0]}: the label {strange[0]!r} stands nowhere in"
                f" {self.found.files[1].name}; nothing could be classified as it"
            )
        self.dataset = _splits(
            {
                split: {
                    "text": [text for _, text in rows],
                    "label": [numbers[label] for label, _ in rows],
                }
                for split, rows in ((TRAIN_SPLIT, trained), (self.found.split, tested))
            }
        )
        self.data_loaded = True


class _LocalClustering(AbsTaskClustering):
    found: ClassVar[LocalSet]
    # A local set is embedded as a whole, or as much of it as an experiment may hold.
    max_fraction_of_documents_to_embed = None
    max_document_to_embed = AbsTaskClustering.max_documents_per_cluster

    def load_data(self, *_args: object, **_options: Any) -> None:  # noqa: ANN401 (mteb's)
        """Texts and their labels."""
        if self.data_loaded:
            return
        labels, texts = zip(*local_files.read_labelled(self.found.files[0]), strict=True)
        self.dataset = _splits({self.found.split: {"sentences": texts, "labels": labels}})
        self.data_loaded = True


_CLASSES: dict[Kind, type[AbsTask]] = {
    "retrieval": _LocalRetrieval,
    "reranking": _LocalReranking,
    "sts": _LocalSTS,
    "pair_classification": _LocalPairClassification,
    "classification": _LocalClassification,
    "clustering": _LocalClustering,
}


def _splits(columns: dict[str, dict[str, Any]]) -> Any:  # noqa: ANN401 (datasets has no types)
    return DatasetDict(
        {
            split: Dataset.from_dict({k: list(v) for k, v in c.items()})
            for split, c in columns.items()
        }
    )


def _retrieval_data(
    split: str,
    corpus: list[dict[str, str]],
    queries: list[dict[str, str]],
    grades: dict[str, dict[str, int]],
    ranked: dict[str, list[str]] | None,
) -> Any:  # noqa: ANN401 (datasets has no types)
    return {
        "default": {
            split: {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": grades,
                "top_ranked": ranked,
            }
        }
    }
