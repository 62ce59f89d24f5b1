"""Qdrant through LlamaIndex: index once, change the demonstrations later.

    python integrations/examples/databases/qdrant_llama_index.py FOLDER

Needs: pip install 'epic-retrieval[llama-index]' llama-index-vector-stores-qdrant
"""

import json
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from llama_index_epic import EpicEmbedding

HERE = Path(__file__).parent
MESSAGE = "since this morning it shuts down when I start it"


def nodes() -> list[TextNode]:
    """The help centre. Ids are UUIDs, since Qdrant takes no names.

    LlamaIndex writes metadata in front of a text before it is embedded, unless they are excluded.
    """
    lines = (HERE / "help-articles.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        TextNode(
            id_=str(uuid5(NAMESPACE_URL, row["_id"])),
            text=row["text"],
            metadata={"name": row["_id"], "platform": row["platform"], "year": row["year"]},
            excluded_embed_metadata_keys=["name", "platform", "year"],
        )
        for row in map(json.loads, lines)
    ]


def vectors(client: QdrantClient) -> NDArray[np.float64]:
    """What is stored, in the order of ids."""
    points, _ = client.scroll("articles", limit=1000, with_vectors=True)
    return np.array([point.vector for point in points])


def search(index: VectorStoreIndex, filters: MetadataFilters | None = None) -> list[Any]:
    """Names and cosines of the five best articles."""
    found = index.as_retriever(similarity_top_k=5, filters=filters).retrieve(MESSAGE)
    return [(one.metadata["name"], one.score) for one in found]


def main(folder: Path) -> dict[str, Any]:
    """Index, search, search with other demonstrations and with a filter."""
    embedding = EpicEmbedding(task="support-tickets", mode="epic")
    client = QdrantClient(path=str(folder))  # or url="http://..."
    store = QdrantVectorStore("articles", client)  # makes a collection with the cosine distance
    index = VectorStoreIndex(
        nodes(),
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
    )
    before = vectors(client)

    # Texts know nothing of demonstrations: other ones are another query vector, nothing more.
    own = VectorStoreIndex.from_vector_store(
        store, embed_model=embedding.with_task(str(HERE / "help-desk.yaml"))
    )
    android = MetadataFilters(filters=[MetadataFilter(key="platform", value="android")])
    result = {
        "shipped": search(index),
        "own": search(own),
        "android": search(own, android),
        # Local Qdrant sets lengths to 1 again at each search, which may change a last bit.
        "unchanged": np.allclose(vectors(client), before, rtol=0, atol=1e-6),
    }
    client.close()
    return result


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python integrations/examples/databases/qdrant_llama_index.py FOLDER")
    for name, value in main(Path(sys.argv[1])).items():
        print(name, value)
