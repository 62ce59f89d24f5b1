"""From a question to the first answer, each stage timed: the path of one request of a RAG service.

The encoder and the index are the ones that users have; a stopwatch sits where they cut texts into
tokens and where they read passages, so nothing is done twice to be timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from epic_retrieval.benchmarking.answering import Answerer, prompt_for
from epic_retrieval.encoder import EpicEncoder
from epic_retrieval.prompt import Mode, Prompt
from epic_retrieval.tasks import Task
from epic_retrieval.tokenization import TextTokenizer, TokenIds

if TYPE_CHECKING:
    from epic_retrieval.index import Hit, PassageIndex

# In the order in which they happen.
STAGES = ("tokenise", "encode", "search", "fetch", "assemble", "answer")
RETRIEVAL = STAGES[:-1]


@dataclass(frozen=True)
class Way:
    """How demonstrations reach the model: what one condition of the benchmark is called by.

    Attributes:
        mode: of the encoder.
        share_prefix: False runs the prompt again for every query.
    """

    mode: Mode
    share_prefix: bool = True

    @property
    def name(self) -> str:
        """Such as "epic" or "epic, prompt run again"."""
        return self.mode if self.share_prefix else f"{self.mode}, prompt run again"


@dataclass
class Stopwatch:
    """Seconds by stage of the request that runs."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - start


class _TimedTokenizer(TextTokenizer):
    """A tokenizer whose cutting of texts is timed."""

    def __init__(self, given: TextTokenizer, watch: Stopwatch) -> None:
        super().__init__(given.hf, bos_id=given.bos_id, eos_id=given.eos_id)
        self._watch = watch

    def text_ids(self, texts: Sequence[str], prompt: Prompt, max_length: int) -> list[TokenIds]:
        with self._watch("tokenise"):
            return super().text_ids(texts, prompt, max_length)


class Pipeline:
    """A question to its first answer.

    For one thread: stages are told apart by one stopwatch. Use it in a `with` block, which takes
    the stopwatch out of the index at the end.

    Args:
        encoder: of queries.
        index: of passages that this encoder made, or of its width.
        answerer: gives the first answer.
        top: passages in its prompt.
    """

    def __init__(
        self, encoder: EpicEncoder, index: "PassageIndex", answerer: Answerer, top: int
    ) -> None:
        self._watch = Stopwatch()
        checkpoint = encoder.checkpoint
        timed = _TimedTokenizer(checkpoint.tokenizer, self._watch)
        self.encoder = EpicEncoder(replace(checkpoint, tokenizer=timed), encoder.cache)
        self.index, self.answerer, self.top = index, answerer, top

    def __enter__(self) -> Self:
        shards = _shards_of(self.index)
        fetch: Callable[..., Any] = shards.fetch

        def timed(rows: Any) -> Any:  # noqa: ANN401 (whatever the index asks for)
            with self._watch("fetch"):
                return fetch(rows)

        vars(shards)["fetch"] = timed
        return self

    def __exit__(self, *_given: object) -> None:
        vars(_shards_of(self.index)).pop("fetch", None)

    def ask(
        self, questions: Sequence[str], task: Task, way: Way, *, answer: bool = True
    ) -> dict[str, float]:
        """Seconds by stage for questions that arrive together, and their "total".

        Args:
            questions: one or more.
            task: what the questions are, with its demonstrations.
            way: how these reach the model.
            answer: ask the language model too, once for each question, one after the other.
        """
        spent = self._watch.spent = {}
        start = time.perf_counter()
        with self._watch("encode"):
            vectors = self.encoder.encode_queries(
                questions, task, way.mode, show_progress=False, share_prefix=way.share_prefix
            )
        with self._watch("search"):
            found = self.index.search(vectors, self.top)
        with self._watch("assemble"):
            prompts = [assemble(one, hits) for one, hits in zip(questions, found, strict=True)]
        if answer:
            with self._watch("answer"):
                for prompt in prompts:
                    self.answerer.first(prompt)
        spent["total"] = time.perf_counter() - start
        # What was timed inside another stage is not part of it.
        spent["encode"] -= spent.setdefault("tokenise", 0.0)
        spent["search"] -= spent.setdefault("fetch", 0.0)
        return spent


def assemble(question: str, hits: "Sequence[Hit]") -> str:
    """The prompt of the answering model: the found passages, best first, and the question."""
    return prompt_for(question, [hit.passage.content for hit in hits])


def _shards_of(index: "PassageIndex") -> Any:  # noqa: ANN401 (an index's inside)
    """Where an open index reads passages: the only place at which reading can be timed apart."""
    return index._opened().shards  # noqa: SLF001
