"""EPIC embeddings as Haystack components."""

from haystack_epic.embedders import EpicDocumentEmbedder, EpicTextEmbedder

__all__ = ["EpicDocumentEmbedder", "EpicTextEmbedder"]
