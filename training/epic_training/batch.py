"""One training step's texts as token ids, all of one dataset.

Knows nothing of models, losses and files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epic_retrieval.prompt import Template, passage_prompt, query_prompt
from epic_retrieval.tasks import Task
from epic_retrieval.tokenization import TextTokenizer

if TYPE_CHECKING:
    from epic_training.data.plan import TextBatch

Row = list[int]


@dataclass(frozen=True)
class Batch:
    """Token ids, each row ending in the end token; row i of `queries` belongs to `positives[i]`.

    Attributes:
        task: the instruction, and whether passages stand behind it too.
        queries: n rows.
        positives: n rows.
        negatives: hard negatives, any number.
        owners: for each hard negative, the index of the query it was chosen for.
        texts: query and positive of each pair, for demonstrations that are text; may be empty when
            none are.
        scores: per query, a teacher's scores of its positive and its own hard negatives, in order.
        in_batch_negatives: False: the only negatives of a query are its own.
        kinds: per query, what is wanted of it where a batch wants several things, which only
            demonstrations of the same kind can tell; empty: one for all.
        name: of the dataset.
        origin: row numbers in the dataset.
    """

    task: Task
    queries: list[Row]
    positives: list[Row]
    negatives: list[Row] = field(default_factory=list)
    owners: Sequence[int] = ()
    texts: Sequence[tuple[str, str]] = ()
    scores: Sequence[Sequence[float]] | None = None
    in_batch_negatives: bool = True
    kinds: Sequence[int] = ()
    name: str = ""
    origin: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def passages(self) -> list[Row]:
        """Positives, then hard negatives."""
        return self.positives + self.negatives

    def row_keys(self) -> tuple[Tensor, Tensor]:
        """(n,) keys of the queries, (n + negatives,) of the passages, equal for equal rows."""
        return _keys(self.queries), _keys(self.passages)

    def pair_keys(self) -> NDArray[np.int64]:
        """(n, 2) keys of queries and positives; equal texts have equal keys in both columns."""
        if self.texts:
            return np.array([[hash(q.strip()), hash(p.strip())] for q, p in self.texts])
        return np.array(
            [
                [hash(tuple(q)), hash(tuple(p))]
                for q, p in zip(self.queries, self.positives, strict=True)
            ]
        )


def _keys(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([hash(tuple(row)) for row in rows])


def tokenise(
    batch: "TextBatch", tokenizer: TextTokenizer, template: Template, max_length: int
) -> Batch:
    """Token ids exactly as the encoder makes them for queries and passages of the batch's task."""
    as_query = query_prompt(template, batch.task, "none")
    as_passage = as_query if batch.task.symmetric else passage_prompt(template)

    def passages(texts: Sequence[str]) -> list[Row]:
        return tokenizer.text_ids(list(texts), as_passage, max_length) if texts else []

    return Batch(
        task=batch.task,
        queries=tokenizer.text_ids(list(batch.queries), as_query, max_length),
        positives=passages(batch.positives),
        negatives=passages(batch.negatives),
        owners=batch.owners,
        texts=list(zip(batch.queries, batch.positives, strict=True)),
        scores=batch.scores,
        in_batch_negatives=batch.in_batch_negatives,
        name=batch.name,
        origin=batch.rows,
    )
