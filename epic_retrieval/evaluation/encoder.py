"""MtebEncoder: an EpicEncoder as mteb asks for vectors.

Says which texts get a prompt. Knows no data set, and nothing of how a prompt is made.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType
from numpy.typing import NDArray

from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.errors import InputError
from epic_retrieval.evaluation.instructions import Instructions
from epic_retrieval.evaluation.memory import VectorMemory
from epic_retrieval.evaluation.metadata import model_meta
from epic_retrieval.prompt import Mode, check_mode
from epic_retrieval.storage import digest_of
from epic_retrieval.tasks import Task

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

logger = logging.getLogger(__name__)


class MtebEncoder(AbsEncoder):
    """An `EpicEncoder` behind mteb's encoder interface.

    Queries, and all texts of tasks without queries and documents, are encoded behind the task's
    prompt; documents of an asymmetric task without one. A document is read as an index reads it,
    title, line break, text, so that scores are those of an index of it.

    Example:
        >>> import mteb
        >>> from epic_retrieval import EpicEncoder
        >>> model = MtebEncoder(EpicEncoder.from_pretrained(), "none")
        >>> result = mteb.evaluate(model, mteb.get_task("SciFact"))  # doctest: +SKIP

    Args:
        encoder: the loaded model.
        mode: how demonstrations enter: "epic", "text" or "none".
        instructions: tasks and demonstrations; without them, the paper's instructions where it has
            the task, else mteb's.
        show_progress: as in `EpicEncoder.encode_queries`.
        memory: shared by several of one encoder, so that they encode the same documents once.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        encoder: EpicEncoder,
        mode: Mode = "none",
        instructions: Instructions | None = None,
        *,
        show_progress: bool | None = False,
        memory: VectorMemory | None = None,
    ) -> None:
        self.model = encoder
        self.mode = check_mode(mode)
        self.instructions = instructions or Instructions()
        self.show_progress = show_progress
        self.memory = memory or VectorMemory(0)
        self.mteb_model_meta = model_meta(encoder, self.mode)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,  # noqa: ARG002 (vectors do not depend on it)
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **kwargs: Any,  # noqa: ANN401 (mteb's)
    ) -> NDArray[np.float32]:
        """Embed what a data loader of mteb yields.

        Texts that are blank, as some corpora of MTEB have them, become zero vectors: they are
        similar to nothing.

        Args:
            inputs: batches of columns.
            task_metadata: says which task it is.
            hf_split: not looked at.
            hf_subset: not looked at.
            prompt_type: query, document, or neither.
            kwargs: `batch_size`, the most texts in a forward pass; others are not looked at.

        Returns:
            (n, dimension) float32, rows of length 1, or 0 for blank texts.

        Raises:
            InputError: as `EpicEncoder.encode_queries`.
        """
        document = prompt_type == PromptType.document
        texts = [text for batch in inputs for text in (contents(batch) if document else _of(batch))]
        task = self.instructions.task_for(task_metadata)
        if not document or task.symmetric:
            return self._vectors(texts, task, kwargs.get("batch_size"), document=False)
        key = digest_of([self.model.passage_fingerprint(task, self.mode), texts])
        return self.memory.get(
            key, lambda: self._vectors(texts, task, kwargs.get("batch_size"), document=True)
        )

    def _vectors(
        self, texts: Sequence[str], task: Task, batch_size: int | None, *, document: bool
    ) -> NDArray[np.float32]:
        encode = self.model.encode_passages if document else self.model.encode_queries
        vectors = np.zeros((len(texts), self.model.dimension), dtype=np.float32)
        kept = [row for row, text in enumerate(texts) if text.strip()]
        if len(kept) < len(texts):
            logger.warning("%d of %d texts are blank", len(texts) - len(kept), len(texts))
        vectors[kept] = encode(
            [texts[row] for row in kept],
            task,
            self.mode,
            batch_size=batch_size,
            show_progress=self.show_progress,
        )
        return vectors


def contents(batch: Mapping[str, Any]) -> list[str]:
    """Documents of a batch as `Passage.content` has them, without its checks of characters."""
    bodies: Sequence[str] = batch["body"] if "body" in batch else batch["text"]
    titles: Sequence[str] = batch.get("title") or [""] * len(bodies)
    return [
        "\n".join(part for part in (title, body) if part)
        for title, body in zip(titles, bodies, strict=True)
    ]


def _of(batch: Mapping[str, Any]) -> Sequence[str]:
    if "text" not in batch:
        raise InputError(
            f"a task has the columns {', '.join(batch)} and no text; only texts can be encoded"
        )
    texts: Sequence[str] = batch["text"]
    return texts
