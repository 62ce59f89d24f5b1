"""Answers from the documentation of Python's own library, with a query engine of LlamaIndex.

    python integrations/examples/rag_llama_index.py FOLDER

Needs: pip install 'epic-retrieval[cpu,llama-index]'. The model that answers is a stand-in which
quotes; put any LLM in its place.
"""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from llama_index.core import PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import TextNode

from llama_index_epic import EpicEmbedding, EpicVectorStore

MODULES = ("shutil", "tempfile", "textwrap", "heapq", "random", "json", "difflib", "subprocess")
QUESTIONS = (
    "copy a folder with everything inside it",
    "a temporary folder that is deleted afterwards",
    "break long lines of text at a given width",
    "turn a JSON text into Python objects",
)
PROMPT = PromptTemplate("Answer with a sentence of these passages.\n\n{context_str}\n\n{query_str}")


class BestSentence(CustomLLM):
    """Answers with the sentence of the passages that shares most words with the question."""

    @property
    def metadata(self) -> LLMMetadata:
        """Nothing to say of a model without a window."""
        return LLMMetadata(model_name="best-sentence", context_window=100_000)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_options: Any) -> CompletionResponse:  # noqa: ANN401, ARG002
        """Reads `PROMPT` as it was filled in."""
        passages, _, question = prompt.rpartition("\n\n")
        asked = set(re.findall(r"\w{3,}", question.lower()))
        # A docstring's sentences end with a full stop, its paragraphs with an empty line.
        sentences = re.split(r"(?<=\.)\s+|\n\n", passages.partition("\n\n")[2])
        best = max(sentences, key=lambda one: len(asked & set(re.findall(r"\w{3,}", one.lower()))))
        return CompletionResponse(text=best.strip())

    @llm_completion_callback()
    def stream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        **_options: Any,  # noqa: ANN401
    ) -> CompletionResponseGen:
        """All at once."""
        yield self.complete(prompt, formatted)


def nodes() -> list[TextNode]:
    """A node for each public function and class that has a docstring."""
    found = []
    for name in MODULES:
        module = import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            text = inspect.getdoc(thing) if callable(thing) else None
            if text:
                full = f"{name}.{public}"
                found.append(TextNode(id_=full, text=f"{full}\n{text}"))
    return found


def main(folder: Path) -> list[dict[str, Any]]:
    """Index the documentation, then answer; each answer has `question`, `passages`, `answer`."""
    embedding = EpicEmbedding(task="python-docs", mode="epic")
    store = EpicVectorStore(folder, embed_model=embedding)
    index = VectorStoreIndex(
        nodes(),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
    )
    engine = index.as_query_engine(llm=BestSentence(), similarity_top_k=3, text_qa_template=PROMPT)
    answers = []
    for question in QUESTIONS:
        response = engine.query(question)
        passages = [one.node for one in response.source_nodes]
        answers.append({"question": question, "passages": passages, "answer": str(response)})
    return answers


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python integrations/examples/rag_llama_index.py FOLDER")
    for one in main(Path(sys.argv[1])):
        print(
            one["question"],
            [passage.node_id for passage in one["passages"]],
            one["answer"],
            sep="\n  ",
        )
