"""Passages that are longer than what the encoder reads of one: counted, and told at the end.

Knows nothing of vectors and indexes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Passage
    from epic_retrieval.tasks import Task


class Lengths:
    """Counts what is too long among passages on their way to an encoder.

    Holds the encoder's tokenizer, not its weights.

    Args:
        encoder: will read the passages.
        task: matters when it is symmetric: its passages are read as queries are.
    """

    def __init__(self, encoder: "EpicEncoder", task: "Task | None") -> None:
        from epic_retrieval.prompt import passage_prompt, query_prompt

        config = encoder.checkpoint.config
        self._tokenizer = encoder.checkpoint.tokenizer
        self._limit = config.max_length
        self._wording = passage_prompt(config.template)
        if task is not None and task.symmetric:
            self._wording = query_prompt(config.template, task, "none")
        self._name = Path(encoder.name).name
        self.too_long = 0

    def counting(self, passages: "Iterable[Passage]") -> "Iterator[Passage]":
        """The same passages; `too_long` grows as they pass."""
        for passage in passages:
            self.too_long += self._is_too_long(passage.content)
            yield passage

    def tell(self) -> None:
        """Says on stderr how many were too long, if any were."""
        if not self.too_long:
            return
        from epic_retrieval.index._words import counted

        are = "is" if self.too_long == 1 else "are"
        # The end token takes one.
        typer.echo(
            f"epic: {counted(self.too_long, 'passage')} {are} longer than the {self._limit - 1:,} "
            f"tokens that {self._name} reads; what lies beyond is not found. Split them.",
            err=True,
        )

    def _is_too_long(self, text: str) -> bool:
        # No token is shorter than a byte: most texts need not be cut into tokens a second time.
        if len(text.encode(errors="surrogatepass")) < self._limit:
            return False
        try:
            [row] = self._tokenizer.text_ids([text], self._wording, 10 * len(text) + 1000)
        except InputError:
            # Told where the text is encoded.
            return False
        return len(row) > self._limit
