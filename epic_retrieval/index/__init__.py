"""Passages and their vectors in a folder: read a corpus, build, open, search, verify.

FAISS, numpy and SQLite; knows nothing of models. Importing this does not import FAISS.
"""

from epic_retrieval.index.build import build_index
from epic_retrieval.index.corpus import read_corpus
from epic_retrieval.index.manifest import EncoderInfo, FileInfo, Manifest, read_manifest
from epic_retrieval.index.passage import JSON, Passage
from epic_retrieval.index.search import Hit, PassageIndex
from epic_retrieval.index.store import PassageStore
from epic_retrieval.index.verify import Problem, VerifyReport, verify_index

__all__ = [
    "JSON",
    "EncoderInfo",
    "FileInfo",
    "Hit",
    "Manifest",
    "Passage",
    "PassageIndex",
    "PassageStore",
    "Problem",
    "VerifyReport",
    "build_index",
    "read_corpus",
    "read_manifest",
    "verify_index",
]
