"""Chroma through LlamaIndex: index once, change the demonstrations later.

    python integrations/examples/databases/chroma_llama_index.py FOLDER

Needs: pip install 'epic-retrieval[llama-index]' llama-index-vector-stores-chroma
"""

import json
import sys
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore

from llama_index_epic import EpicEmbedding

HERE = Path(__file__).parent
MESSAGE = "since this morning it shuts down when I start it"


def nodes() -> list[TextNode]:
    """The help centre.

    LlamaIndex writes metadata in front of a text before it is embedded, unless they are excluded.
    """
    lines = (HERE / "help-articles.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        TextNode(
            id_=row["_id"],
            text=row["text"],
            metadata={"platform": row["platform"], "year": row["year"]},
            excluded_embed_metadata_keys=["platform", "year"],
        )
        for row in map(json.loads, lines)
    ]


def vectors(collection: chromadb.Collection) -> dict[str, Any]:
    """What is stored, by id."""
    found: Any = collection.get(include=["embeddings"])
    return dict(zip(found["ids"], found["embeddings"].tolist(), strict=True))


def search(index: VectorStoreIndex, filters: MetadataFilters | None = None) -> list[Any]:
    """Names and scores of the five best articles; this store's score is exp(cosine - 1)."""
    found = index.as_retriever(similarity_top_k=5, filters=filters).retrieve(MESSAGE)
    return [(one.node_id, one.score) for one in found]


def main(folder: Path) -> dict[str, Any]:
    """Index, search, search with other demonstrations and with a filter."""
    embedding = EpicEmbedding(task="support-tickets", mode="epic")
    client = chromadb.PersistentClient(folder, Settings(anonymized_telemetry=False))
    collection = client.get_or_create_collection(
        "articles",
        # Chroma's own default is the squared L2 distance, and a model of its own for texts.
        configuration={"hnsw": {"space": "cosine"}},
        embedding_function=None,
    )
    store = ChromaVectorStore(chroma_collection=collection)
    index = VectorStoreIndex(
        nodes(),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
    )
    before = vectors(collection)

    # Texts know nothing of demonstrations: other ones are another query vector, nothing more.
    own = VectorStoreIndex.from_vector_store(
        store, embed_model=embedding.with_task(str(HERE / "help-desk.yaml"))
    )
    android = MetadataFilters(filters=[MetadataFilter(key="platform", value="android")])
    return {
        "shipped": search(index),
        "own": search(own),
        "android": search(own, android),
        "unchanged": vectors(collection) == before,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python integrations/examples/databases/chroma_llama_index.py FOLDER")
    for name, value in main(Path(sys.argv[1])).items():
        print(name, value)
