"""EPIC embeddings as a LangChain `Embeddings`."""

from langchain_epic.embeddings import EpicEmbeddings

__all__ = ["EpicEmbeddings"]
