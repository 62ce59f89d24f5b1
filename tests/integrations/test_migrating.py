"""The page on migration: its new code runs as printed, and finds what core finds."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_qdrant import QdrantVectorStore
from llama_index.core import Document as LlamaDocument
from llama_index.core import VectorStoreIndex

from epic_retrieval import Collection, shared_encoder

INTEGRATIONS = Path(__file__).resolve().parents[2] / "integrations"
PAGE = (INTEGRATIONS / "MIGRATING.md").read_text(encoding="utf-8")
ROWS = [
    json.loads(line)
    for line in (INTEGRATIONS / "examples" / "databases" / "help-articles.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
TEXTS = [row["text"] for row in ROWS]
METADATA = [{"platform": row["platform"], "year": row["year"]} for row in ROWS]
OTHER_MODEL = DeterministicFakeEmbedding(size=16)
QUESTION = "I was charged twice"


def blocks() -> dict[str, str]:
    """The code under "after", by what is imported first, which tells them apart."""
    found = re.findall(r"```python\n# after\n(.*?)```", PAGE, flags=re.DOTALL)
    return {f"{number}: {code.split()[1]}": code for number, code in enumerate(found)}


def langchain(_folder: Path) -> dict[str, Any]:
    pairs = zip(TEXTS, METADATA, strict=True)
    return {"documents": [Document(page_content=text, metadata=about) for text, about in pairs]}


def llama_index(_folder: Path) -> dict[str, Any]:
    return {"documents": [LlamaDocument(text=text) for text in TEXTS]}


def listed(_folder: Path) -> dict[str, Any]:
    return {"texts": TEXTS}


def old_chroma(folder: Path) -> dict[str, Any]:
    client = chromadb.PersistentClient(folder / "chroma", Settings(anonymized_telemetry=False))
    vectors: Any = OTHER_MODEL.embed_documents(TEXTS)
    about: Any = METADATA
    client.create_collection("articles", embedding_function=None).add(
        [row["_id"] for row in ROWS], vectors, about, TEXTS
    )
    return {}


def old_qdrant(folder: Path) -> dict[str, Any]:
    store = QdrantVectorStore.from_texts(
        TEXTS, OTHER_MODEL, METADATA, path=str(folder / "qdrant"), collection_name="articles"
    )
    store.client.close()
    return {}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "0: langchain_epic": langchain,
    "1: llama_index.core": llama_index,
    "2: langchain_core.documents": listed,
    "3: pathlib": listed,
    "4: sentence_transformers": listed,
    "5: chromadb": old_chroma,
    "6: langchain_epic": old_qdrant,
}


def nearest(k: int = 3) -> list[str]:
    encoder = shared_encoder()
    query = encoder.encode_queries([QUESTION], "support-tickets")[0]
    return [TEXTS[row] for row in np.argsort(-(encoder.encode_passages(TEXTS) @ query))[:k]]


def texts_of(names: dict[str, Any]) -> list[str]:
    """What the code found, in whatever form its framework has."""
    if "pipeline" in names:  # which indexes, and does not search
        index = VectorStoreIndex.from_vector_store(names["store"], names["embedding"])
        return [one.text for one in index.as_retriever(similarity_top_k=3).retrieve(QUESTION)]
    if "found" in names:
        return [getattr(one, "page_content", None) or one.text for one in names["found"]]
    return [TEXTS[row] for row in names["scores"][0].argsort(descending=True)[:3]]


@pytest.mark.parametrize("name", blocks())
def test_the_new_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = GIVEN[name](tmp_path)
    exec(compile(blocks()[name], name, "exec"), names)  # noqa: S102 (a page of ours)
    assert texts_of(names) == nearest()


@pytest.mark.parametrize(
    ("name", "folder"), [("2: langchain_core.documents", "articles"), ("3: pathlib", "nodes")]
)
def test_indexing_again_doubles_nothing(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for texts in (TEXTS, TEXTS, ["Changed.", *TEXTS[1:-1]]):
        names: dict[str, Any] = {"texts": texts}
        exec(compile(blocks()[name], name, "exec"), names)  # noqa: S102 (a page of ours)
        stored = Collection(tmp_path / folder)
        # Ids alone replace; what is not given again stays.
        gone = [] if folder == "nodes" else TEXTS[len(texts) :]
        assert sorted(one.text for one in stored.passages) == sorted([*texts, *gone])


def test_all_code_is_python() -> None:
    found = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(found) == 12
    for code in found:
        ast.parse(code)
