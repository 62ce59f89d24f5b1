"""A second teacher beside the first, and texts that belong together: the aim of a later stage.

Two teachers that err in different places say together what neither says alone: the aim's
similarities are the mean of both teachers', in the space of the first, so that a student of the
first goes on where it is. Texts that were written as query and passage are drawn to each other: a
passage's aim holds the ways people ask for it, a query's what it asks for. Knows nothing of the
student.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically
from epic_training.pairs import Pair, is_development, read_pairs
from epic_training.teacher import TaughtTexts, order_of, taught

_LEAST = 1e-6  # share of a step's texts


@dataclass(frozen=True)
class SecondLessons:
    """Texts and what a student is to make of them.

    Attributes:
        taught: texts and aims, (n, width of the first teacher) float16 of length 1.
        weights: (n,) float64 that sum to 1: how often a text is drawn.
        passages: (n,) bool, texts that stand behind no prompt.
    """

    taught: TaughtTexts
    weights: NDArray[np.float64]
    passages: NDArray[np.bool_]


def second_lessons(
    config: Mapping[str, Any],
    folders: Mapping[str, Path],
    first: TaughtTexts,
    out: Path,
) -> SecondLessons:
    """Encode with both teachers what is not encoded yet, and mix.

    Args:
        config: of the whole training. Of `second` are used `model` (of `Teacher`), `texts` (so many
            of the first teacher's), `max_tokens`, and `written`: data set to `share` (of a step's
            texts, half of it passages) and `pull` (weight of the mean of a text's partners beside
            its own vector).
        folders: of the data sets.
        first: the first teacher's texts.
        out: folder of `texts.json` and both teachers' shards; made where it is missing.
    """
    chosen = config["second"]
    pairs = {
        name: _training_pairs(folders[name], config["dev_percent"]) for name in chosen["written"]
    }
    file = out / "texts.json"
    if not file.is_file():
        own = sorted({text for rows in pairs.values() for text in _texts(rows)}, key=order_of)
        known = set(own)
        others = (text for text in sorted(first.texts, key=order_of) if text not in known)
        sample = [text for text, _ in zip(others, range(chosen["texts"]), strict=False)]
        write_atomically(file, json.dumps([*sample, *own]).encode())
    texts = json.loads(file.read_text(encoding="utf-8"))
    teacher = config["teacher"]
    views = [
        taught(source, texts, most, out / name).vectors.astype(np.float32)
        for name, source, most in (
            ("first", teacher["package"], teacher["max_tokens"]),
            ("second", chosen["model"], chosen["max_tokens"]),
        )
    ]
    aims = joint_view(*views)
    number = {text: i for i, text in enumerate(texts)}
    weights = np.zeros(len(texts))
    passages = np.zeros(len(texts), dtype=bool)
    drawn = aims.copy()
    for name, rows in pairs.items():
        settings = chosen["written"][name]
        queries = np.array([number[pair.query] for pair in rows])
        positives = np.array([number[pair.positive] for pair in rows])
        drawn = drawn_together(drawn, aims, queries, positives, settings["pull"])
        for side in (queries, positives):
            weights[np.unique(side)] += settings["share"] / 2 / len(np.unique(side))
        passages[positives] = True
    share = 1 - weights.sum()
    if share < _LEAST:
        raise InputError(
            f"second.written takes {weights.sum():.2f} of a step's texts; expected shares whose sum"
            " is below 1"
        )
    rest = weights == 0
    weights[rest] = share / rest.sum()
    found = TaughtTexts(texts, drawn.astype(np.float16))
    return SecondLessons(found, weights, passages)


def _training_pairs(folder: Path, dev_percent: float) -> list[Pair]:
    """Rows of a data set that are not held out."""
    rows = read_pairs(folder / "pairs.jsonl.gz")
    return [pair for pair in rows if not is_development(pair.query, dev_percent)]


def _texts(rows: Sequence[Pair]) -> set[str]:
    """All texts of rows."""
    return {text for pair in rows for text in (pair.query, pair.positive, pair.negative) if text}


def joint_view(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors whose cosines are about the mean of two teachers', close to the first's.

    Both side by side, brought to the first's width by their principal directions, then rotated onto
    the first's vectors (orthogonal Procrustes).

    Args:
        first: (n, d) of length 1.
        second: (n, e) of length 1, of the same texts.

    Returns:
        (n, d) float32 of length 1.
    """
    both = np.hstack([first, second])
    _, directions = np.linalg.eigh(both.T @ both)
    reduced = both @ directions[:, -first.shape[1] :]
    left, _, right = np.linalg.svd(reduced.T @ first, full_matrices=False)
    return _unit(reduced @ (left @ right))


def drawn_together(
    vectors: NDArray[np.float32],
    own: NDArray[np.float32],
    queries: NDArray[np.int64],
    positives: NDArray[np.int64],
    pull: float,
) -> NDArray[np.float32]:
    """`vectors` plus `pull` times the mean of what each text's partners are by `own`.

    Args:
        vectors: (n, d) of length 1.
        own: (n, d) of length 1, what partners count as.
        queries: (m,) rows of queries.
        positives: (m,) rows of the passages that belong to them.
        pull: 0 changes nothing.

    Returns:
        (n, d) float32 of length 1.
    """
    found = vectors.copy()
    for side, other in ((queries, positives), (positives, queries)):
        mean = np.zeros_like(vectors)
        np.add.at(mean, side, own[other])
        count = np.bincount(side, minlength=len(vectors)).clip(1)
        found += pull * mean / count[:, None]
    return _unit(found)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    return unit
