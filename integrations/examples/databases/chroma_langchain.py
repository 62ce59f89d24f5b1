"""Chroma through LangChain: index once, change the demonstrations later.

    python integrations/examples/databases/chroma_langchain.py FOLDER

Needs: pip install 'epic-retrieval[langchain]' langchain-chroma
"""

import json
import sys
from pathlib import Path
from typing import Any

from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.documents import Document

from langchain_epic import EpicEmbeddings

HERE = Path(__file__).parent
MESSAGE = "since this morning it shuts down when I start it"


def documents() -> list[Document]:
    """The help centre."""
    lines = (HERE / "help-articles.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Document(
            id=row["_id"],
            page_content=row["text"],
            metadata={"platform": row["platform"], "year": row["year"]},
        )
        for row in map(json.loads, lines)
    ]


def open_store(folder: Path, embeddings: EpicEmbeddings) -> Chroma:
    """The collection, made where there is none. Chroma's own default is the squared L2 distance."""
    return Chroma(
        "articles",
        embeddings,
        persist_directory=str(folder),
        client_settings=Settings(anonymized_telemetry=False),
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


def vectors(store: Chroma) -> dict[str, list[float]]:
    """What is stored, by id."""
    found = store.get(include=["embeddings"])
    return dict(zip(found["ids"], found["embeddings"].tolist(), strict=True))


def search(
    store: Chroma, condition: dict[str, str] | None = None
) -> list[tuple[str | None, float]]:
    """Names and distances of the five best articles; a distance is 1 - cosine."""
    found = store.similarity_search_with_score(MESSAGE, k=5, filter=condition)
    return [(document.id, score) for document, score in found]


def main(folder: Path) -> dict[str, Any]:
    """Index, search, search with other demonstrations and with a filter."""
    embeddings = EpicEmbeddings(task="support-tickets", mode="epic")
    store = open_store(folder, embeddings)
    store.add_documents(documents())
    before = vectors(store)

    # Passages know nothing of demonstrations: other ones are another query vector, nothing more.
    own = open_store(folder, embeddings.with_task(str(HERE / "help-desk.yaml")))
    return {
        "shipped": search(store),
        "own": search(own),
        "android": search(own, {"platform": "android"}),
        "unchanged": vectors(own) == before,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python integrations/examples/databases/chroma_langchain.py FOLDER")
    for name, value in main(Path(sys.argv[1])).items():
        print(name, value)
