"""Stores of passages that users might pick, ours among them: filled, opened, asked.

    python benchmarks/index_rivals.py build chroma '{"data": DATA, "out": OUT, "count": 100000}'

`index.py` starts this, one process for one store and one step, and watches its memory; here are
also the passages that both use. Each store is embedded, and used as its documentation shows for
cosine or inner product, with its own defaults. All work is kept to one core. Knows nothing of how
figures are compared or drawn.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Row = tuple[str, str, dict[str, Any]]  # id, text, metadata

TOP = 10
VECTORS = "vectors.f32"
_WARM_UP = 20
_WORDS = (
    "water light engine wing pressure theory river market cell signal winter stone letter music "
    "garden method surface energy language mountain history number protein circuit village law "
    "ocean planet machine season "
) * 2
_LANGUAGES = ("en", "de", "fr", "es", "zh")


def say(event: str, **values: Any) -> None:  # noqa: ANN401
    """Tell whoever watches, as a line of JSON."""
    print(json.dumps({"event": event, **values}), flush=True)


def row_text(row: int) -> str:
    """About 180 characters that begin with the row, in less than a microsecond."""
    first = row * 7919 % 197
    return f"{row} {_WORDS[first : first + 170]}."


def row_metadata(row: int) -> dict[str, Any]:
    """Three fields."""
    year, source = 1950 + row % 75, f"collection-{row % 100}"
    return {"year": year, "language": _LANGUAGES[row % 5], "source": source}


def row_id(row: int) -> str:
    """Of the passage."""
    return f"p{row:08d}"


def read_vectors(folder: Path, first: int, count: int, dimension: int) -> Vectors:
    """Prepared vectors, read and not mapped, so that they do not count as mapped memory."""
    flat = np.fromfile(
        folder / VECTORS, np.float32, count * dimension, offset=4 * first * dimension
    )
    return flat.reshape(-1, dimension)


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Source:
    """Prepared passages and vectors, a batch at a time.

    Args:
        folder: Where `index.py` put them.
        count: How many to use.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.dimension = int(json.loads((folder / "data.json").read_bytes())["dimension"])

    def batches(self, size: int) -> Iterator[tuple[list[Row], Vectors]]:
        """(id, text, metadata) of each, and (n, dimension) float32."""
        for first in range(0, self.count, size):
            stop = min(first + size, self.count)
            rows = [(row_id(i), row_text(i), row_metadata(i)) for i in range(first, stop)]
            yield rows, read_vectors(self.folder, first, stop - first, self.dimension)


class Store(Protocol):
    """A store on disk.

    Attributes:
        libraries: Distributions whose versions matter.
        about: How it is used, in a few words.
    """

    libraries: tuple[str, ...]
    about: str

    def build(self, source: Source, out: Path) -> None:
        """Fill it and put it on disk."""

    def open(self, source: Source, out: Path) -> None:
        """Open what `build` made."""

    def search(self, query: Vectors) -> list[tuple[str, str]]:
        """(id, text) of the `TOP` passages nearest to one query, (dimension,)."""


class Ours:
    """This package.

    Args:
        kind: As for `build_index`.
    """

    libraries: tuple[str, ...] = ("faiss-cpu",)

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.about = f"build_index, kind {kind}"

    def build(self, source: Source, out: Path) -> None:  # noqa: D102 (as in Store)
        from epic_retrieval.index import EncoderInfo, Passage, build_index

        def encode(texts: list[str]) -> Vectors:
            first = int(texts[0].split(" ", 1)[0])
            return read_vectors(source.folder, first, len(texts), source.dimension)

        passages = (
            Passage(row_id(i), row_text(i), metadata=row_metadata(i)) for i in range(source.count)
        )
        info = EncoderInfo("prepared", "0" * 16, source.dimension)
        manifest = build_index(
            passages, encode, out, encoder=info, kind=self.kind, total=source.count
        )
        say("note", kind=manifest.kind)

    def open(self, source: Source, out: Path) -> None:  # noqa: ARG002, D102
        from epic_retrieval.index import PassageIndex

        self.index = PassageIndex.open(out)

    def search(self, query: Vectors) -> list[tuple[str, str]]:  # noqa: D102
        hits = self.index.search(query[None], TOP)[0]
        return [(hit.passage.id, hit.passage.text) for hit in hits]


class LangChainFaiss:
    """LangChain's community store; vectors are handed over as arrays, which spares it memory."""

    libraries: tuple[str, ...] = ("langchain-community", "faiss-cpu")
    about = "FAISS.from_embeddings, MAX_INNER_PRODUCT, save_local (pickle)"

    def build(self, source: Source, out: Path) -> None:  # noqa: D102
        faiss = import_module("langchain_community.vectorstores.faiss")
        fake = import_module("langchain_core.embeddings").FakeEmbeddings(size=source.dimension)
        store: Any = None
        for rows, vectors in source.batches(10_000):
            ids, texts, metadata = zip(*rows, strict=True)
            pairs = list(zip(texts, vectors, strict=True))
            if store is None:
                store = faiss.FAISS.from_embeddings(
                    pairs,
                    fake,
                    list(metadata),
                    list(ids),
                    distance_strategy=faiss.DistanceStrategy.MAX_INNER_PRODUCT,
                )
            else:
                store.add_embeddings(pairs, list(metadata), list(ids))
        store.save_local(str(out))

    def open(self, source: Source, out: Path) -> None:  # noqa: D102
        faiss = import_module("langchain_community.vectorstores.faiss")
        fake = import_module("langchain_core.embeddings").FakeEmbeddings(size=source.dimension)
        self.store = faiss.FAISS.load_local(
            str(out),
            fake,
            allow_dangerous_deserialization=True,  # written by ourselves just before
            distance_strategy=faiss.DistanceStrategy.MAX_INNER_PRODUCT,
        )

    def search(self, query: Vectors) -> list[tuple[str, str]]:  # noqa: D102
        found = self.store.similarity_search_with_score_by_vector(query.tolist(), k=TOP)
        return [(one.id, one.page_content) for one, _ in found]


class Chroma:
    """Chroma's persistent client."""

    libraries: tuple[str, ...] = ("chromadb",)
    about = "PersistentClient, space cosine, its default HNSW"

    def build(self, source: Source, out: Path) -> None:  # noqa: D102
        client = self._client(out)
        made = client.create_collection("passages", configuration={"hnsw": {"space": "cosine"}})
        for rows, vectors in source.batches(client.get_max_batch_size()):
            ids, texts, metadata = map(list, zip(*rows, strict=True))
            made.add(ids=ids, embeddings=vectors, documents=texts, metadatas=metadata)

    def open(self, source: Source, out: Path) -> None:  # noqa: ARG002, D102
        self.collection = self._client(out).get_collection("passages")

    def search(self, query: Vectors) -> list[tuple[str, str]]:  # noqa: D102
        found = self.collection.query(query_embeddings=[query], n_results=TOP)
        return list(zip(found["ids"][0], found["documents"][0], strict=True))

    def _client(self, out: Path) -> Any:  # noqa: ANN401
        chroma = import_module("chromadb")
        settings = chroma.Settings(anonymized_telemetry=False)
        return chroma.PersistentClient(str(out), settings)


class Qdrant:
    """Qdrant's local mode, which searches all rows with numpy.

    Args:
        on_disk: Whether points are kept on disk, each in a transaction of its own; else nothing
            is, and opening is filling it again.
    """

    libraries: tuple[str, ...] = ("qdrant-client",)

    def __init__(self, *, on_disk: bool) -> None:
        self.on_disk = on_disk
        place = "path=..." if on_disk else '":memory:"'
        self.about = f"QdrantClient({place}), local mode, distance cosine"

    def build(self, source: Source, out: Path) -> None:  # noqa: D102
        self.client = self._client(out)
        models = import_module("qdrant_client").models
        self.client.create_collection(
            "passages",
            vectors_config=models.VectorParams(
                size=source.dimension, distance=models.Distance.COSINE
            ),
        )
        started, done = time.perf_counter(), 0
        for rows, vectors in source.batches(1000):
            self.client.upload_collection(
                "passages",
                vectors=vectors,
                payload=[{"id": key, "text": text, **fields} for key, text, fields in rows],
                ids=[int(key[1:]) for key, _, _ in rows],
            )
            done += len(rows)
            say("progress", rows=done, seconds=time.perf_counter() - started)

    def open(self, source: Source, out: Path) -> None:  # noqa: D102
        if self.on_disk:
            self.client = self._client(out)
        else:
            self.build(source, out)

    def search(self, query: Vectors) -> list[tuple[str, str]]:  # noqa: D102
        found = self.client.query_points("passages", query=query.tolist(), limit=TOP).points
        return [(one.payload["id"], one.payload["text"]) for one in found]

    def _client(self, out: Path) -> Any:  # noqa: ANN401
        qdrant = import_module("qdrant_client").QdrantClient
        return qdrant(path=str(out)) if self.on_disk else qdrant(":memory:")


class LanceDB:
    """LanceDB.

    Args:
        indexed: Whether to make its default vector index, IVF_PQ; a table has none at first.
        refine: Compare so many times the wished rows by their full vectors; 0 as by default.
    """

    libraries: tuple[str, ...] = ("lancedb",)

    def __init__(self, *, indexed: bool, refine: int = 0) -> None:
        self.indexed, self.refine = indexed, refine
        made = "create_index(metric='cosine')" if indexed else "no index, exact search"
        self.about = f"create_table, {made}" + (f", refine_factor({refine})" if refine else "")

    def build(self, source: Source, out: Path) -> None:  # noqa: D102
        lance, arrow = import_module("lancedb"), import_module("pyarrow")

        def tables() -> Iterator[Any]:
            for rows, vectors in source.batches(10_000):
                ids, texts, fields = zip(*rows, strict=True)
                flat = arrow.array(vectors.reshape(-1))
                columns = {
                    "id": arrow.array(ids),
                    "text": arrow.array(texts),
                    **{key: arrow.array([one[key] for one in fields]) for key in fields[0]},
                    "vector": arrow.FixedSizeListArray.from_arrays(flat, source.dimension),
                }
                yield arrow.RecordBatch.from_pydict(columns)

        batches = tables()
        first = next(batches)
        database = lance.connect(str(out))
        table = database.create_table("passages", data=arrow.Table.from_batches([first]))
        for batch in batches:
            table.add(arrow.Table.from_batches([batch]))
        if self.indexed:
            table.create_index(metric="cosine", vector_column_name="vector")

    def open(self, source: Source, out: Path) -> None:  # noqa: ARG002, D102
        self.table = import_module("lancedb").connect(str(out)).open_table("passages")

    def search(self, query: Vectors) -> list[tuple[str, str]]:  # noqa: D102
        asked = self.table.search(query).distance_type("cosine").limit(TOP)
        found = (asked.refine_factor(self.refine) if self.refine else asked).to_list()
        return [(one["id"], one["text"]) for one in found]


STORES: dict[str, Store] = {
    "ours, auto": Ours("auto"),
    "ours, ivf-sq8": Ours("ivf-sq8"),
    "ours, flat": Ours("flat"),
    "LangChain FAISS": LangChainFaiss(),
    "Chroma": Chroma(),
    "Qdrant, local mode in memory": Qdrant(on_disk=False),
    "Qdrant, local mode on disk": Qdrant(on_disk=True),
    "LanceDB, no index": LanceDB(indexed=False),
    "LanceDB, IVF_PQ": LanceDB(indexed=True),
    "LanceDB, IVF_PQ, refined": LanceDB(indexed=True, refine=10),
}
# Searched in the folder of the one before.
SAME_FOLDER = ("LanceDB, IVF_PQ, refined",)


def build(store: Store, source: Source, out: Path) -> None:
    """Fill a store, timed."""
    started, spent = time.perf_counter(), time.process_time()
    store.build(source, out)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    versions = {name: version(name) for name in store.libraries}
    size = folder_bytes(out) if out.exists() else 0
    say("built", seconds=seconds, cpu_seconds=cpu, bytes=size, about=store.about, versions=versions)


def search(store: Store, source: Source, out: Path) -> None:
    """Open a store and ask it one query after the other, timed."""
    queries = np.load(source.folder / f"queries-{source.count}.npy")
    truth = np.load(source.folder / f"truth-{source.count}.npy")[:, :TOP]
    started = time.perf_counter()
    store.open(source, out)
    store.search(queries[0])
    opened = time.perf_counter() - started
    times, cpus, right = [], [], 0
    for number, query in enumerate(queries):
        started, spent = time.perf_counter(), time.process_time()
        found = store.search(query)
        if number >= _WARM_UP:
            times.append(time.perf_counter() - started)
            cpus.append(time.process_time() - spent)
        for key, text in found:
            if text != row_text(int(key[1:])):
                raise ValueError(f"{key} came with the text of another passage: {text!r}")
        right += len({int(key[1:]) for key, _ in found} & set(truth[number].tolist()))
    p50, p95 = (float(1e3 * np.quantile(times, share)) for share in (0.5, 0.95))
    say(
        "searched",
        open_and_first_seconds=opened,
        p50_ms=p50,
        p95_ms=p95,
        cpu_p50_ms=float(1e3 * np.median(cpus)),
        recall=right / truth.size,
        queries=len(times),
    )


def main(step: str, name: str, settings: dict[str, Any]) -> None:
    """One step of one store."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    source = Source(Path(settings["data"]), settings["count"])
    {"build": build, "search": search}[step](STORES[name], source, Path(settings["out"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
