"""Answers from the documentation of Python's own library, as a pipeline of Haystack.

    python integrations/examples/rag_haystack.py

Needs: pip install 'epic-retrieval[cpu,haystack]'. The model that answers is a stand-in which
quotes; put any generator in its place.
"""

import inspect
import re
from importlib import import_module
from typing import Any

from haystack import Document, Pipeline, component
from haystack.components.builders import PromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_epic import EpicDocumentEmbedder, EpicTextEmbedder

MODULES = ("shutil", "tempfile", "textwrap", "heapq", "random", "json", "difflib", "subprocess")
QUESTIONS = (
    "copy a folder with everything inside it",
    "a temporary folder that is deleted afterwards",
    "break long lines of text at a given width",
    "turn a JSON text into Python objects",
)
PROMPT = """Answer with a sentence of these passages.
{% for document in documents %}
{{ document.content }}
{% endfor %}
{{ question }}"""


@component
class BestSentence:
    """Answers with the sentence of the passages that shares most words with the question."""

    @component.output_types(replies=list[str])
    def run(self, prompt: str) -> dict[str, list[str]]:
        """Reads `PROMPT` as it was filled in."""
        passages, _, question = prompt.rpartition("\n\n")
        asked = set(re.findall(r"\w{3,}", question.lower()))
        # A docstring's sentences end with a full stop, its paragraphs with an empty line.
        sentences = re.split(r"(?<=\.)\s+|\n\n", passages.partition("\n\n")[2])
        best = max(sentences, key=lambda one: len(asked & set(re.findall(r"\w{3,}", one.lower()))))
        return {"replies": [best.strip()]}


def documents() -> list[Document]:
    """A document for each public function and class that has a docstring."""
    found = []
    for name in MODULES:
        module = import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            text = inspect.getdoc(thing) if callable(thing) else None
            if text:
                full = f"{name}.{public}"
                found.append(Document(id=full, content=f"{full}\n{text}"))
    return found


def main() -> list[dict[str, Any]]:
    """Index the documentation, then answer; each answer has `question`, `passages`, `answer`."""
    # Vectors have length 1, so the inner product is the cosine.
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    store.write_documents(EpicDocumentEmbedder().run(documents())["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", EpicTextEmbedder(task="python-docs", mode="epic"))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    pipeline.add_component("prompt", PromptBuilder(PROMPT, required_variables="*"))
    pipeline.add_component("model", BestSentence())
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "prompt.documents")
    pipeline.connect("prompt", "model")
    answers = []
    for question in QUESTIONS:
        given = {"embedder": {"text": question}, "prompt": {"question": question}}
        result = pipeline.run(given, include_outputs_from={"retriever"})
        passages = result["retriever"]["documents"]
        answer = result["model"]["replies"][0]
        answers.append({"question": question, "passages": passages, "answer": answer})
    return answers


if __name__ == "__main__":
    for one in main():
        print(one["question"], [found.id for found in one["passages"]], one["answer"], sep="\n  ")
