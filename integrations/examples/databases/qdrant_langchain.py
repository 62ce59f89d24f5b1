"""Qdrant through LangChain: index once, change the demonstrations later.

    python integrations/examples/databases/qdrant_langchain.py FOLDER

Needs: pip install 'epic-retrieval[langchain]' langchain-qdrant
"""

import json
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, FieldCondition, Filter, MatchValue, VectorParams

from langchain_epic import EpicEmbeddings

HERE = Path(__file__).parent
MESSAGE = "since this morning it shuts down when I start it"


def documents() -> list[Document]:
    """The help centre; Qdrant takes numbers and UUIDs as ids, so names become UUIDs."""
    lines = (HERE / "help-articles.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Document(
            id=str(uuid5(NAMESPACE_URL, row["_id"])),
            page_content=row["text"],
            # Not "_id" again: the store writes its own into metadata.
            metadata={"name": row["_id"], "platform": row["platform"], "year": row["year"]},
        )
        for row in map(json.loads, lines)
    ]


def vectors(client: QdrantClient) -> NDArray[np.float64]:
    """What is stored, in the order of ids."""
    points, _ = client.scroll("articles", limit=1000, with_vectors=True)
    return np.array([point.vector for point in points])


def search(
    client: QdrantClient, embeddings: EpicEmbeddings, condition: Filter | None = None
) -> list[tuple[str, float]]:
    """Names and cosines of the five best articles; this is all that a query needs."""
    store = QdrantVectorStore(client, "articles", embeddings)
    found = store.similarity_search_with_score(MESSAGE, k=5, filter=condition)
    return [(document.metadata["name"], score) for document, score in found]


def main(folder: Path) -> dict[str, Any]:
    """Index, search, search with other demonstrations and with a filter."""
    embeddings = EpicEmbeddings(task="support-tickets", mode="epic")
    client = QdrantClient(path=str(folder))  # or url="http://..."
    size = len(embeddings.embed_query(MESSAGE))
    if not client.collection_exists("articles"):
        client.create_collection(
            "articles", vectors_config=VectorParams(size=size, distance=Distance.COSINE)
        )
    QdrantVectorStore(client, "articles", embeddings).add_documents(documents())
    before = vectors(client)

    # Passages know nothing of demonstrations: other ones are another query vector, nothing more.
    own = embeddings.with_task(str(HERE / "help-desk.yaml"))
    android = FieldCondition(key="metadata.platform", match=MatchValue(value="android"))
    result = {
        "shipped": search(client, embeddings),
        "own": search(client, own),
        "android": search(client, own, Filter(must=[android])),
        # Local Qdrant sets lengths to 1 again at each search, which may change a last bit.
        "unchanged": np.allclose(vectors(client), before, rtol=0, atol=1e-6),
    }
    client.close()
    return result


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python integrations/examples/databases/qdrant_langchain.py FOLDER")
    for name, value in main(Path(sys.argv[1])).items():
        print(name, value)
