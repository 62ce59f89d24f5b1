"""Answers from the documentation of Python's own library, as a chain of LangChain.

    python integrations/examples/rag_langchain.py FOLDER

Needs: pip install 'epic-retrieval[cpu,langchain]'. The model that answers is a stand-in which
quotes; put any chat model in its place.
"""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_epic import EpicEmbeddings, EpicVectorStore

MODULES = ("shutil", "tempfile", "textwrap", "heapq", "random", "json", "difflib", "subprocess")
QUESTIONS = (
    "copy a folder with everything inside it",
    "a temporary folder that is deleted afterwards",
    "break long lines of text at a given width",
    "turn a JSON text into Python objects",
)


class BestSentence(SimpleChatModel):
    """Answers with the sentence of the passages that shares most words with the question."""

    @property
    def _llm_type(self) -> str:
        return "best-sentence"

    def _call(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **_options: Any,  # noqa: ANN401
    ) -> str:
        passages, question = messages[0].text, messages[-1].text
        asked = set(re.findall(r"\w{3,}", question.lower()))
        # A docstring's sentences end with a full stop, its paragraphs with an empty line.
        sentences = re.split(r"(?<=\.)\s+|\n\n", passages.partition("\n\n")[2])
        return max(
            sentences, key=lambda one: len(asked & set(re.findall(r"\w{3,}", one.lower())))
        ).strip()


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
                found.append(
                    Document(id=full, page_content=f"{full}\n{text}", metadata={"module": name})
                )
    return found


def together(passages: list[Document]) -> str:
    """The passages as the prompt shows them."""
    return "\n\n".join(passage.page_content for passage in passages)


def main(folder: Path) -> list[dict[str, Any]]:
    """Index the documentation, then answer; each answer has `question`, `passages`, `answer`."""
    embeddings = EpicEmbeddings(task="python-docs", mode="epic")
    with EpicVectorStore(folder, embeddings) as store:
        store.add_documents(documents())
        prompt = ChatPromptTemplate.from_messages(
            [
                ("system", "Answer with a sentence of these passages.\n\n{context}"),
                ("human", "{question}"),
            ]
        )
        shown = RunnablePassthrough.assign(context=lambda found: together(found["passages"]))
        chain = {
            "question": RunnablePassthrough(),
            "passages": store.as_retriever(search_kwargs={"k": 3}),
        } | RunnablePassthrough.assign(answer=shown | prompt | BestSentence() | StrOutputParser())
        return chain.batch(list(QUESTIONS))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python integrations/examples/rag_langchain.py FOLDER")
    for one in main(Path(sys.argv[1])):
        print(
            one["question"], [passage.id for passage in one["passages"]], one["answer"], sep="\n  "
        )
