"""nDCG@10 on SciFact through every framework: the same model has to score the same everywhere.

    python benchmarks/frameworks.py --data DATA [--out FILE]

The command line builds an index and searches it. LangChain and LlamaIndex search that index through
their retrievers; they, Haystack and sentence-transformers also embed the corpus themselves and keep
it in their own stores. Prints a table and writes the record as JSON.
"""

import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import ir_measures
import typer
from ir_measures import Qrel, ScoredDoc, nDCG

from epic_retrieval.prompt import Mode

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

HERE = Path(__file__).parent
TASK = "scientific-claims"
MODE: Mode = "epic"
K = 10
FRAMEWORKS = ("langchain-core", "llama-index-core", "haystack-ai", "sentence-transformers")

Found = list[str]  # ids of passages, the best first
Search = Callable[[str], Found]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, or of the .jsonl.gz beside it."""
    if path.is_file():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with gzip.open(f"{path}.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_qrels(path: Path) -> list[Qrel]:
    """Judgements of a tab-separated file with a header: query, passage, grade."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [Qrel(query, passage, int(grade)) for query, passage, grade in rows]


def command_line(*arguments: str, queries: list[str] | None = None) -> str:
    """What `epic ARGUMENTS` prints, with queries on its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "epic_retrieval.cli", *arguments],
        input=None if queries is None else "\n".join(queries),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def langchain_index(index: Path, _texts: Mapping[str, str]) -> Search:
    """LangChain over the index of the command line."""
    from langchain_epic import EpicVectorStore

    store = EpicVectorStore.open(index, task=TASK, mode=MODE)
    retriever = store.as_retriever(search_kwargs={"k": K})
    return lambda query: [str(one.id) for one in retriever.invoke(query)]


def langchain_memory(_index: Path, texts: Mapping[str, str]) -> Search:
    """LangChain's store in memory."""
    from langchain_core.vectorstores import InMemoryVectorStore

    from langchain_epic import EpicEmbeddings

    store = InMemoryVectorStore(EpicEmbeddings(task=TASK, mode=MODE))
    store.add_texts(list(texts.values()), ids=list(texts))
    retriever = store.as_retriever(search_kwargs={"k": K})
    return lambda query: [str(one.id) for one in retriever.invoke(query)]


def llama_index_index(index: Path, _texts: Mapping[str, str]) -> Search:
    """LlamaIndex over the index of the command line."""
    from llama_index.core import VectorStoreIndex

    from llama_index_epic import EpicEmbedding, EpicVectorStore

    embedding = EpicEmbedding(task=TASK, mode=MODE)
    store = EpicVectorStore(index, embed_model=embedding)
    retriever = VectorStoreIndex.from_vector_store(store, embed_model=embedding).as_retriever(
        similarity_top_k=K
    )
    return lambda query: [one.node_id for one in retriever.retrieve(query)]


def llama_index_memory(_index: Path, texts: Mapping[str, str]) -> Search:
    """LlamaIndex's store in memory."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from llama_index_epic import EpicEmbedding

    nodes = [TextNode(id_=name, text=text) for name, text in texts.items()]
    retriever = VectorStoreIndex(
        nodes, embed_model=EpicEmbedding(task=TASK, mode=MODE)
    ).as_retriever(similarity_top_k=K)
    return lambda query: [one.node_id for one in retriever.retrieve(query)]


def haystack_memory(_index: Path, texts: Mapping[str, str]) -> Search:
    """Haystack's store in memory, in a pipeline."""
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from haystack_epic import EpicDocumentEmbedder, EpicTextEmbedder

    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    documents = [Document(id=name, content=text) for name, text in texts.items()]
    store.write_documents(EpicDocumentEmbedder().run(documents)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", EpicTextEmbedder(task=TASK, mode=MODE))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=K))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")

    def search(query: str) -> Found:
        found = pipeline.run({"embedder": {"text": query}})["retriever"]["documents"]
        return [document.id for document in found]

    return search


def sentence_transformers(_index: Path, texts: Mapping[str, str]) -> Search:
    """sentence-transformers, with its own exact search."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import semantic_search

    from sentence_transformers_epic import EpicModule

    model = SentenceTransformer(modules=[EpicModule(task=TASK, mode=MODE)])
    names = list(texts)
    passages = model.encode_document(list(texts.values()), convert_to_tensor=True)

    def search(query: str) -> Found:
        vector = model.encode_query(query, convert_to_tensor=True)
        return [
            names[int(hit["corpus_id"])] for hit in semantic_search(vector, passages, top_k=K)[0]
        ]

    return search


WAYS: dict[str, Callable[[Path, Mapping[str, str]], Search]] = {
    "LangChain, the same index": langchain_index,
    "LlamaIndex, the same index": llama_index_index,
    "LangChain, in memory": langchain_memory,
    "LlamaIndex, in memory": llama_index_memory,
    "Haystack, in memory": haystack_memory,
    "sentence-transformers": sentence_transformers,
}


def measure(folder: Path, ways: Mapping[str, Any] = WAYS) -> Iterator[tuple[str, float]]:
    """Name and nDCG@10, over all judged queries, of the command line and then of each way.

    Args:
        folder: With corpus.jsonl, queries.jsonl and qrels.tsv, the first two also as .gz.
        ways: Name and function of each: (index, text by id) to a search.
    """
    qrels = read_qrels(folder / "qrels.tsv")
    judged = {one.query_id for one in qrels}
    rows = read_jsonl(folder / "queries.jsonl")
    queries = {row["_id"]: row["text"] for row in rows if row["_id"] in judged}
    corpus = read_jsonl(folder / "corpus.jsonl")
    # As the command line puts title and text together.
    texts = {row["_id"]: "\n".join(filter(None, (row["title"], row["text"]))) for row in corpus}
    with tempfile.TemporaryDirectory() as temporary:
        index = Path(temporary) / "index"
        command_line("index", "build", str(folder), "--out", str(index), "--kind", "flat")
        options = ("--task", TASK, "--mode", MODE, "-k", str(K), "--json")
        asked = list(queries.values())
        lines = command_line("index", "search", str(index), "-", *options, queries=asked)
        hits = [json.loads(line)["hits"] for line in lines.splitlines()]
        by_query = {asked[at]: [hit["id"] for hit in found] for at, found in enumerate(hits)}
        yield "epic index search", ndcg(qrels, queries, by_query.__getitem__)
        for name, way in ways.items():
            yield name, ndcg(qrels, queries, way(index, texts))


def ndcg(qrels: list[Qrel], queries: Mapping[str, str], search: Search) -> float:
    """Mean nDCG@10; the order of what is found counts, since scores differ in their meaning."""
    run = [
        ScoredDoc(name, passage, -float(rank))
        for name, query in queries.items()
        for rank, passage in enumerate(search(query))
    ]
    return float(ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10])


def main(
    data: Annotated[Path, typer.Option(help="folder with retrieval/scifact")],
    out: Annotated[Path, typer.Option()] = HERE / "results" / "frameworks.json",
) -> None:
    """Measure, print the table, write the JSON."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
    )
    scores: dict[str, float] = {}
    record = {
        "command": "python benchmarks/frameworks.py --data DATA",
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in FRAMEWORKS},
        "dataset": "SciFact, 300 test queries",
        "model": "epic-mini",
        "task": TASK,
        "mode": MODE,
        "ndcg@10": scores,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    print("| nDCG@10, SciFact | |\n|---|---|")
    for name, score in measure(data / "retrieval" / "scifact"):
        scores[name] = score
        # At once: embedding the corpus takes minutes each time, and a run may be stopped.
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"| {name} | {score:.4f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
