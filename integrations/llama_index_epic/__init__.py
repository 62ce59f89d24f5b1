"""EPIC embeddings as a LlamaIndex `BaseEmbedding`, and index folders as a vector store."""

from llama_index_epic.embeddings import EpicEmbedding
from llama_index_epic.vector_store import EpicVectorStore

__all__ = ["EpicEmbedding", "EpicVectorStore"]
