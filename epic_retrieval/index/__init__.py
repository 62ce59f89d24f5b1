"""Passages and their vectors in a folder: read a corpus, build, open, search, change, verify.

FAISS, numpy and SQLite; knows nothing of models. Importing this does not import FAISS.
"""

from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index.build import build_index
from epic_retrieval.index.collection import Collection
from epic_retrieval.index.corpus import read_corpus
from epic_retrieval.index.encode import Progress, encode_shards
from epic_retrieval.index.export import export_parquet, to_arrow
from epic_retrieval.index.manifest import EncoderInfo, FileInfo, Manifest, read_manifest
from epic_retrieval.index.merge import merge
from epic_retrieval.index.passage import JSON, Passage
from epic_retrieval.index.qdrant import export_qdrant
from epic_retrieval.index.search import Hit, PassageIndex
from epic_retrieval.index.verify import Problem, VerifyReport, verify_index
from epic_retrieval.index.writer import IndexWriter

__all__ = [
    "JSON",
    "Collection",
    "EncoderInfo",
    "EncodingSettings",
    "FileInfo",
    "Hit",
    "IndexWriter",
    "Manifest",
    "Passage",
    "PassageIndex",
    "Problem",
    "Progress",
    "VerifyReport",
    "build_index",
    "encode_shards",
    "export_parquet",
    "export_qdrant",
    "merge",
    "read_corpus",
    "read_manifest",
    "to_arrow",
    "verify_index",
]
