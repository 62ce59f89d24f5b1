"""EPIC embeddings as a module of sentence-transformers."""

from sentence_transformers_epic.module import EpicModule

__all__ = ["EpicModule"]
