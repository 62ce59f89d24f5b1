"""EPIC embeddings as a LlamaIndex `BaseEmbedding`."""

from llama_index_epic.embeddings import EpicEmbedding

__all__ = ["EpicEmbedding"]
