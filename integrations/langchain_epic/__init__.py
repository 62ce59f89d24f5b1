"""EPIC embeddings as a LangChain `Embeddings`, and indexes as a LangChain `VectorStore`."""

from langchain_epic.embeddings import EpicEmbeddings
from langchain_epic.vector_store import EpicVectorStore

__all__ = ["EpicEmbeddings", "EpicVectorStore"]
