"""The passage index: building, searching and opening it, beside FAISS by hand and other stores.

    python benchmarks/index.py --rows 1000000 --max-memory 1.5G --out results/index.json

Vectors are made here, clustered as those of texts are; passages are short texts with metadata.
Every part runs in processes of its own whose memory is watched from outside, with one thread for
FAISS and for whatever else can be told so. What is compared is timed in turns, round by round; a
ratio is the median over rounds of two times of the same round, with a bootstrap interval. Parts are
written to the JSON file as they finish, and can be run alone (`--only kinds,opening`; then
`--work FOLDER` keeps data and index between runs). The other stores may live in another environment
(`--python`); they are chromadb, lancedb, qdrant-client, langchain-community.
"""

import contextlib
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.index_rivals import (
    SAME_FOLDER,
    STORES,
    TOP,
    VECTORS,
    Vectors,
    folder_bytes,
    read_vectors,
    row_id,
    row_metadata,
    row_text,
    say,
)
from epic_retrieval.cli.index_options import bytes_of
from epic_retrieval.errors import EpicError
from epic_retrieval.index._faiss import load_faiss

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
QUERIES = 1000
BLOCK = 50_000
ROWS_OF_STORES = 100_000
KINDS = ("ivf-sq8", "ivf", "ivf-pq", "hnsw")
LIMIT = 3600.0  # seconds for a step
STORE_LIMIT = 300.0
HNSW_ROWS = 200_000  # a graph of more takes too long to make on one core
ENVIRONMENT = {
    **dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "RAYON_NUM_THREADS",
            "LANCE_CPU_THREADS",
        ),
        "1",
    ),
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_OFFLINE": "1",
}

Record = dict[str, Any]


# --- data ---------------------------------------------------------------------------------------


class Mixture:
    """Directions of clusters: topics, clusters in them, and rows around those.

    Numbers of a row fall off with a power of their place, as singular values of text embeddings do,
    and are then turned; all rows share a mean. Clusters differ in size and width. Widths and the
    distance of queries were set once beside 200,000 real texts and their questions: of 1,024 lists,
    a recall@10 of 0.92 then needs 16. In a static embedding of those texts, which is the hardest
    to search, it needs 64.

    Args:
        rows: How many there will be; some 100 to a cluster.
        dimension: Width.
    """

    def __init__(self, rows: int, dimension: int) -> None:
        rng = np.random.default_rng([SEED, 0])
        scales = (1 + np.arange(dimension)) ** -0.4
        self.scales = (scales / np.linalg.norm(scales)).astype(np.float32)
        self.turn = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0].astype(np.float32)
        count = max(rows // 100, 8)
        topics = self.noise(rng, max(count // 50, 4))
        self.centres = self.noise(rng, count) + topics[rng.integers(len(topics), size=count)]
        self.centres += 0.6 * self.noise(rng, 1)
        weights = rng.lognormal(0.0, 1.0, count)
        self.shares = np.cumsum(weights / weights.sum())
        self.widths = rng.lognormal(np.log(1.2), 0.6, count).astype(np.float32)

    def noise(self, rng: np.random.Generator, count: int) -> Vectors:
        """Vectors of about length 1 before they are turned, (count, dimension)."""
        made: Vectors = rng.standard_normal((count, len(self.scales)), np.float32) * self.scales
        return made

    def rows(self, number: int, count: int) -> Vectors:
        """A block of unit vectors, the same for the same number."""
        rng = np.random.default_rng([SEED, 1, number])
        places = np.minimum(np.searchsorted(self.shares, rng.random(count)), len(self.shares) - 1)
        made = self.noise(rng, count) * self.widths[places, None] + self.centres[places]
        return unit(made @ self.turn)

    def queries(self, near: Vectors) -> Vectors:
        """Unit vectors with a cosine of about 0.7 to those given."""
        rng = np.random.default_rng([SEED, 2])
        return unit(near + (self.noise(rng, len(near)) @ self.turn))


def unit(vectors: Vectors) -> Vectors:
    """At length 1."""
    made: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return made.astype(np.float32, copy=False)


def make_data(folder: Path, rows: int, dimension: int) -> None:
    """Vectors, queries and the true nearest rows, block by block; kept if they are there."""
    wanted = {"rows": rows, "dimension": dimension, "seed": SEED}
    note = folder / "data.json"
    if note.exists() and json.loads(note.read_bytes()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    tell(f"making {rows:,} vectors")
    mixture = Mixture(rows, dimension)
    with (folder / VECTORS).open("wb") as file:
        for number, first in enumerate(range(0, rows, BLOCK)):
            file.write(mixture.rows(number, min(BLOCK, rows - first)).tobytes())
    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    for count in {rows, min(rows, ROWS_OF_STORES)}:
        drawn = np.sort(np.random.default_rng([SEED, 3]).choice(count, QUERIES))
        near = np.concatenate([read_vectors(folder, int(i), 1, dimension) for i in drawn])
        queries = mixture.queries(near)
        heap = faiss.ResultHeap(QUERIES, TOP, keep_max=True)
        for first in range(0, count, BLOCK):
            block = read_vectors(folder, first, min(BLOCK, count - first), dimension)
            scores, places = faiss.knn(queries, block, TOP, faiss.METRIC_INNER_PRODUCT)
            heap.add_result(scores, places + first)
        heap.finalize()
        np.save(folder / f"queries-{count}.npy", queries)
        np.save(folder / f"truth-{count}.npy", heap.I)
    note.write_text(json.dumps(wanted))


def asked(folder: Path, count: int) -> tuple[Vectors, Any]:
    """Queries to the first `count` rows, and their true nearest rows, (n, TOP)."""
    return np.load(folder / f"queries-{count}.npy"), np.load(folder / f"truth-{count}.npy")


def recall_of(found: Any, truth: Any) -> float:  # noqa: ANN401 (arrays of rows)
    """The share of the true rows that was found."""
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return sum(len(set(one) & set(other)) for one, other in pairs) / float(truth.size)


# --- processes that are watched -----------------------------------------------------------------


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def memory_of(process: int | str = "self") -> dict[str, int]:
    """Bytes of memory: anonymous, mapped files, both, and the highest of both. Linux only."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    values = dict(line.split(":", 1) for line in text.splitlines())
    names = {"anonymous": "RssAnon", "mapped": "RssFile", "resident": "VmRSS", "peak": "VmHWM"}
    return {name: int(values[key].split()[0]) * 1024 for name, key in names.items()}


class Watched:
    """A process, its events, and its peak memory, in all and between events of a stage.

    Args:
        command: Prints lines of JSON.
        settings: For its environment.
        limit: Seconds after which it is ended.
    """

    def __init__(self, command: list[str], settings: dict[str, str], limit: float) -> None:
        self.events: list[Record] = []
        self.peaks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._stage = "begin"
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
        )
        reader = threading.Thread(target=self._read, args=(process,))
        reader.start()
        while process.poll() is None:
            # A process that has just ended has no memory to tell of.
            with contextlib.suppress(OSError, KeyError):
                self._note(memory_of(process.pid))
            if time.monotonic() - started > limit:
                process.kill()
            time.sleep(0.01)
        reader.join()
        self.seconds = time.monotonic() - started
        self.failed = process.returncode != 0

    def _read(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            if not line.startswith('{"event"'):
                tell(line.rstrip())
                continue
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "stage":
                self._stage = event["name"]

    def _note(self, memory: dict[str, int]) -> None:
        for place in ("", self._stage):
            for name, size in memory.items():
                self.peaks[place][name] = max(self.peaks[place][name], size)

    def event(self, name: str) -> Record:
        """The values of the last such event."""
        found = [event for event in self.events if event["event"] == name]
        return {key: value for key, value in found[-1].items() if key != "event"} if found else {}

    @property
    def memory(self) -> Record:
        """Peaks in bytes."""
        whole = dict(self.peaks[""])
        stages = {name: dict(peak) for name, peak in self.peaks.items() if name}
        return {
            "anonymous_peak": whole.get("anonymous", 0),
            "mapped_peak": whole.get("mapped", 0),
            "resident_peak_vmhwm": whole.get("peak", 0),
            "anonymous_peak_by_stage": {name: peak["anonymous"] for name, peak in stages.items()},
            "mapped_peak_by_stage": {name: peak["mapped"] for name, peak in stages.items()},
        }


def child(step: str, work: Path, **settings: Any) -> Watched:  # noqa: ANN401
    """A step of this script in a process of its own."""
    given = {"work": str(work), **settings}
    command = [sys.executable, str(Path(__file__)), "--child", json.dumps([step, given])]
    watched = Watched(command, {**ENVIRONMENT, "EPIC_CACHE_DIR": str(work / "cache")}, LIMIT)
    if watched.failed:
        raise EpicError(f"The step {step} failed with {given}.")
    return watched


# --- interleaved timing -------------------------------------------------------------------------


class Bench:
    """Conditions, timed in turns."""

    def __init__(self) -> None:
        self.work: dict[str, Callable[[], object]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def run(self, rounds: int) -> None:
        """Warm up, then so many rounds; each begins with another condition."""
        names = list(self.work)
        for name in names:
            self.work[name]()
            self.seconds[name], self.cpu[name] = [], []
        for number in range(rounds):
            for name in np.roll(names, number).tolist():
                started, spent = time.perf_counter(), time.process_time()
                self.work[name]()
                self.cpu[name].append(time.process_time() - spent)
                self.seconds[name].append(time.perf_counter() - started)

    def ratio(self, above: str, below: str) -> Record:
        """How many times longer `above` takes, by the clock and by processor time."""
        by_clock = interval(np.array(self.seconds[above]) / np.array(self.seconds[below]))
        by_cpu = interval(np.array(self.cpu[above]) / np.array(self.cpu[below]))
        return {**by_clock, "of_processor_time": by_cpu}


def interval(ratios: Any) -> Record:  # noqa: ANN401 (an array)
    """Median and a 95 % bootstrap interval of it."""
    draws = np.random.default_rng(SEED).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    median = float(np.median(ratios))
    return {"median": median, "interval": [float(low), float(high)], "rounds": len(ratios)}


# --- what runs in processes of its own ----------------------------------------------------------


class Stages:
    """Follows a build: says when a stage begins, and keeps how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    def __call__(self, now: Any) -> None:  # noqa: ANN401 (a Progress)
        """Take in what a build reports."""
        if now.stage not in self.seconds:
            say("stage", name=now.stage)
            tell(f"  {now.stage}")
        self.seconds[now.stage] = now.seconds
        if now.note:
            self.notes.append(now.note)
            tell(f"  {now.note}")


def index_record(index: Path, stages: Stages, seconds: float) -> Record:
    """What a build made and how."""
    from epic_retrieval.index import read_manifest

    manifest = read_manifest(index)
    sizes: dict[str, int] = defaultdict(int)
    for path, info in manifest.files.items():
        sizes[Path(path).name] += info.bytes
    search = manifest.search
    return {
        "factory": manifest.kind,
        "parameters": dict(search.parameters) if search else {},
        "recall_measured_at_build": search.recall if search else None,
        "seconds": seconds,
        "seconds_by_stage": stages.seconds,
        "notes": stages.notes,
        "disk_bytes": {"whole_folder": folder_bytes(index), **sizes},
    }


def child_build(work: Path, rows: int, dimension: int, memory: int) -> None:
    """A whole index, from passages on."""
    from epic_retrieval.index import EncoderInfo, Passage, build_index

    handing = [0.0]

    def encode(texts: list[str]) -> Vectors:
        started = time.perf_counter()
        found = read_vectors(work, int(texts[0].split(" ", 1)[0]), len(texts), dimension)
        handing[0] += time.perf_counter() - started
        return found

    passages = (Passage(row_id(i), row_text(i), metadata=row_metadata(i)) for i in range(rows))
    stages, out = Stages(), work / "index"
    shutil.rmtree(out, ignore_errors=True)
    say("stage", name="begin")
    started, spent = time.perf_counter(), time.process_time()
    build_index(
        passages,
        encode,
        out,
        encoder=EncoderInfo("prepared", "0" * 16, dimension),
        memory=memory,
        total=rows,
        progress=stages,
    )
    seconds = time.perf_counter() - started
    cpu = time.process_time() - spent
    record = index_record(out, stages, seconds)
    say("built", **record, cpu_seconds=cpu, handing_vectors_seconds=handing[0])


def child_rebuild(work: Path, kind: str, memory: int) -> None:
    """Another structure over the vectors that are there."""
    from epic_retrieval.index.writer import IndexWriter

    stages = Stages()
    started = time.perf_counter()
    with IndexWriter(work / "index") as writer:
        writer.rebuild(kind, memory=memory, progress=stages)
    say("built", **index_record(work / "index", stages, time.perf_counter() - started))


def by_hand(work: Path, rows: int, dimension: int, path: Path) -> tuple[Any, Any, Any]:
    """The structure in memory, and it with all vectors behind it (IndexRefine)."""
    faiss = load_faiss()
    base = faiss.read_index(str(path))
    flat = faiss.IndexFlatIP(dimension)
    for first in range(0, rows, BLOCK):
        flat.add(read_vectors(work, first, min(BLOCK, rows - first), dimension))
    # FAISS holds no references to the parts, so they are given back, too.
    return base, flat, faiss.IndexRefine(base, flat)


def hand_parameters(base: Any, given: dict[str, int], count: int) -> Any:  # noqa: ANN401
    """FAISS's own object for these search parameters."""
    faiss = load_faiss()
    inner = faiss.downcast_index(base)
    if isinstance(inner, faiss.IndexPreTransform):
        inside = hand_parameters(inner.index, given, count)
        return faiss.SearchParametersPreTransform(index_params=inside)
    if "nprobe" in given:
        return faiss.SearchParametersIVF(nprobe=given["nprobe"])
    return faiss.SearchParametersHNSW(efSearch=max(given["efSearch"], count))


def store_by_hand(work: Path, rows: int) -> sqlite3.Connection:
    """All passages in one table by row, as whoever uses FAISS by hand would keep them."""
    path = work / f"by-hand-{rows}.sqlite"
    if not path.exists():
        made = sqlite3.connect(path.with_suffix(".part"))
        made.execute("CREATE TABLE passages (row INTEGER PRIMARY KEY, id, text, metadata)")
        made.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?)",
            ((i, row_id(i), row_text(i), json.dumps(row_metadata(i))) for i in range(rows)),
        )
        made.commit()
        made.close()
        path.with_suffix(".part").rename(path)
    return sqlite3.connect(path)


def fetched_by_hand(
    store: sqlite3.Connection,
    scores: Any,  # noqa: ANN401 (arrays of FAISS)
    rows: Any,  # noqa: ANN401
) -> list[list[tuple[Record, float]]]:
    """For each query the passages, as mappings, and their scores."""
    wanted = list({row for near in rows.tolist() for row in near})
    held: dict[int, Record] = {}
    for first in range(0, len(wanted), 500):
        part = wanted[first : first + 500]
        query = f"SELECT * FROM passages WHERE row IN ({', '.join('?' * len(part))})"  # noqa: S608
        for row, name, text, metadata in store.execute(query, part):
            held[row] = {"id": name, "text": text, "metadata": json.loads(metadata)}
    return [
        [(held[row], score) for row, score in zip(near, some, strict=True)]
        for near, some in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def for_each(way: Callable[[Vectors], Any], batches: list[Vectors]) -> None:
    """Search batch by batch."""
    for batch in batches:
        way(batch)


def child_compare(work: Path, rows: int, dimension: int, rounds: int) -> None:
    """Our search beside the same structure in FAISS's hands alone."""
    from epic_retrieval.index import PassageIndex
    from epic_retrieval.index._finding import best_rows

    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    index = PassageIndex.open(work / "index")
    info = index.manifest.search
    if info is None:
        raise EpicError("There is nothing to compare: the index is flat.")
    base, _flat, refined = by_hand(
        work, rows, dimension, work / "index" / "search" / info.name / "index.faiss"
    )
    given = dict(info.parameters)
    count = given["candidates"]
    wide = faiss.IndexRefineSearchParameters(
        k_factor=count / TOP, base_index_params=hand_parameters(base, given, count)
    )
    narrow = hand_parameters(base, given, TOP)
    view = index._opened()  # noqa: SLF001 (rows without passages are what FAISS gives)
    store = store_by_hand(work, rows)
    ways: dict[str, Callable[[Vectors], Any]] = {
        "ours": lambda q: best_rows(view, q, TOP, None, {}).rows,
        "ours, with passages": lambda q: index.search(q, TOP),
        "by hand": lambda q: refined.search(q, TOP, params=wide)[1],
        "by hand, with passages": lambda q: fetched_by_hand(
            store, *refined.search(q, TOP, params=wide)
        ),
        "by hand, not rescored": lambda q: base.search(q, TOP, params=narrow)[1],
    }
    queries, truth = asked(work, rows)
    found = {name: way(queries) for name, way in ways.items() if "passages" not in name}
    alike = recall_of(found["ours"], found["by hand"])
    record: Record = {
        "recall": {name: recall_of(rows_of, truth) for name, rows_of in found.items()},
        "rows_of_ours_also_found_by_hand": alike,
    }
    for size, often in ((1, 100), (64, 4)):
        bench = Bench()
        batches = [queries[i * size : (i + 1) * size] for i in range(often)]
        for name, way in ways.items():
            bench.work[name] = partial(for_each, way, batches)
        bench.run(rounds)
        record["single queries" if size == 1 else f"batches of {size}"] = {
            "queries_per_second": {
                name: often * size / float(np.median(spent))
                for name, spent in bench.seconds.items()
            },
            "queries_per_processor_second": {
                name: often * size / float(np.median(spent)) for name, spent in bench.cpu.items()
            },
            "speed_over_by_hand": {
                name: bench.ratio("by hand", name) for name in ("ours", "by hand, not rescored")
            },
            "speed_over_by_hand_with_passages": bench.ratio(
                "by hand, with passages", "ours, with passages"
            ),
        }
    say("compared", **record)


def child_made(work: Path, rows: int, dimension: int, kind: str, memory: int) -> None:
    """A structure by FAISS alone, and by us, from nothing: time, and recall with equal effort."""
    from epic_retrieval.index.ann import Ann, train_and_add
    from epic_retrieval.index.choice import choose
    from epic_retrieval.index.exact import rescore
    from epic_retrieval.index.rows import ArrayRows
    from epic_retrieval.index.tune import tune

    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    vectors = read_vectors(work, 0, rows, dimension)
    queries, truth = asked(work, rows)
    factory = choose(kind, rows, dimension, memory).factory
    if factory == "Flat":
        raise EpicError(f"{kind}: there is no structure for {rows:,} rows.")
    held = ArrayRows(vectors)
    started, spent = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=work) as name:
        path = train_and_add(held, factory, memory=memory, folder=Path(name))
        ours = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - spent}
        ann = Ann.read(path, factory, rows, dimension, mmap=False)
    started, spent = time.perf_counter(), time.process_time()
    index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    hand = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - spent}
    given = dict(tune(held, ann).parameters)
    count = given["candidates"]
    proposed = {
        "ours": ann.propose(queries, count, given),
        "by hand": index.search(queries, count, params=hand_parameters(index, given, count))[1],
    }
    say(
        "made",
        factory=factory,
        parameters=given,
        ours=ours,
        by_hand=hand,
        recall={
            n: recall_of(rescore(held, queries, p, TOP).rows, truth) for n, p in proposed.items()
        },
        recall_not_rescored={n: recall_of(p[:, :TOP], truth) for n, p in proposed.items()},
    )


def child_open(work: Path, rows: int, *, check: bool) -> None:
    """Opening, the first queries, and memory after each."""
    from epic_retrieval.index import PassageIndex

    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    queries, _ = asked(work, rows)
    before = memory_of()
    started = time.perf_counter()
    index = PassageIndex.open(work / "index", check=check)
    opened = time.perf_counter()
    index.search(queries[:1], TOP)
    answered = time.perf_counter()
    after_first = memory_of()
    times = []
    for query in queries[1:]:
        begun = time.perf_counter()
        index.search(query[None], TOP)
        times.append(time.perf_counter() - begun)
    say(
        "opened",
        open_seconds=opened - started,
        first_query_seconds=answered - opened,
        next_9_ms=float(1e3 * np.median(times[:9])),
        p50_ms=float(1e3 * np.median(times)),
        memory_before=before,
        memory_after_first_query=after_first,
        memory_after_1000_queries=memory_of(),
    )


def child_throughput(work: Path, passages: int, rounds: int) -> None:
    """The bundled model alone, and behind `build_index`."""
    import torch

    from epic_retrieval.cli.models import encoder_info, load_encoder
    from epic_retrieval.index import build_index
    from epic_retrieval.stdlib_docs import stdlib_passages

    torch.set_num_threads(1)
    encoder = load_encoder(None)
    corpus = [one for _, one in zip(range(passages), stdlib_passages(), strict=False)]
    texts = [one.content for one in corpus]
    out = work / "throughput"

    within, shares = [0.0], []

    def encode(some: list[str]) -> Vectors:
        started = time.perf_counter()
        found = encoder.encode_passages(some, show_progress=False)
        within[0] += time.perf_counter() - started
        return found

    def build() -> None:
        shutil.rmtree(out, ignore_errors=True)
        within[0], started = 0.0, time.perf_counter()
        build_index(corpus, encode, out, encoder=encoder_info(encoder), kind="flat")
        shares.append(within[0] / (time.perf_counter() - started))

    bench = Bench()
    bench.work["encode_passages"] = lambda: encode(texts)
    bench.work["build_index"] = build
    bench.run(rounds)
    shutil.rmtree(out)
    say(
        "measured",
        passages=len(corpus),
        characters=sum(map(len, texts)) / len(texts),
        passages_per_second={
            name: len(corpus) / float(np.median(spent)) for name, spent in bench.seconds.items()
        },
        build_over_bare=bench.ratio("encode_passages", "build_index"),
        share_of_build_spent_encoding=interval(np.array(shares[1:])),
    )


CHILDREN: dict[str, Callable[..., None]] = {
    "build": child_build,
    "rebuild": child_rebuild,
    "compare": child_compare,
    "made": child_made,
    "open": child_open,
    "throughput": child_throughput,
}


# --- parts --------------------------------------------------------------------------------------


class Run:
    """What all parts share.

    Args:
        work: Folder for data and indexes.
        rows: Of the large index.
        dimension: Of all vectors.
        memory: Bytes for structures.
        python: That has the other stores.
        kinds: To compare.
    """

    def __init__(
        self,
        work: Path,
        rows: int,
        dimension: int,
        memory: int,
        python: str,
        kinds: tuple[str, ...],
    ) -> None:
        self.work, self.rows, self.dimension, self.memory = work, rows, dimension, memory
        self.python, self.kinds = python, kinds
        self.few = min(rows, ROWS_OF_STORES)

    def built(self) -> None:
        """Make sure that there is an index of these rows."""
        from epic_retrieval.index import read_manifest
        from epic_retrieval.index.manifest import is_index

        index = self.work / "index"
        if not is_index(index) or read_manifest(index).count != self.rows:
            list(self.build())

    def build(self) -> Iterator[Record]:
        """The whole build, with its memory."""
        settings = {"rows": self.rows, "dimension": self.dimension, "memory": self.memory}
        watched = child("build", self.work, **settings)
        yield {**watched.event("built"), "max_memory": self.memory, "memory": watched.memory}

    def opening(self) -> Iterator[Record]:
        """Cold and warm, with checksums compared, remembered, and not compared."""
        from epic_retrieval.index import read_manifest

        self.built()
        time.sleep(4)  # what was written in the last seconds is never remembered as whole
        conditions: dict[str, tuple[bool, bool, bool]] = {  # cold, forgotten, check
            "cold, every checksum compared": (True, True, True),
            "cold, checksums remembered": (True, False, True),
            "cold, large files not compared": (True, True, False),
            "warm, every checksum compared": (False, True, True),
            "warm, checksums remembered": (False, False, True),
        }
        kept: dict[str, list[Record]] = defaultdict(list)
        for _ in range(3):
            for name, (cold, forgotten, check) in conditions.items():
                if forgotten:
                    shutil.rmtree(self.work / "cache", ignore_errors=True)
                if cold:
                    drop_from_cache(self.work / "index")
                watched = child("open", self.work, rows=self.rows, check=check)
                kept[name].append(watched.event("opened"))
        manifest = read_manifest(self.work / "index")
        yield {
            "factory": manifest.kind,
            "index_bytes": sum(info.bytes for info in manifest.files.values()),
            "conditions": {name: medians(records) for name, records in kept.items()},
            "note": "cold: the pages of the index alone were dropped from this machine's cache; "
            "what lies below a virtual disk may still hold them",
        }

    def comparison(self) -> Iterator[Record]:
        """Each kind at full size: rebuilt if need be, then searched beside FAISS by hand."""
        from epic_retrieval.index import read_manifest
        from epic_retrieval.index.choice import choose

        self.built()
        for kind in self.kinds:
            if kind == "hnsw" and self.rows > HNSW_ROWS:
                yield {kind: {"left_out": f"more than {HNSW_ROWS:,} rows; see `made`"}}
                continue
            tell(f"kind {kind}")
            record: Record = {}
            wished = choose(kind, self.rows, self.dimension, self.memory).factory
            if read_manifest(self.work / "index").kind != wished:
                watched = child("rebuild", self.work, kind=kind, memory=self.memory)
                record = {**watched.event("built"), "memory": watched.memory}
            if read_manifest(self.work / "index").search is not None:
                shared = {"rows": self.rows, "dimension": self.dimension, "rounds": 15}
                record |= child("compare", self.work, **shared).event("compared")
            yield {kind: record}

    def made(self) -> Iterator[Record]:
        """Each kind trained and filled by FAISS alone and by us, in fewer rows."""
        for kind in self.kinds:
            tell(f"made: {kind}")
            settings = {"rows": self.few, "dimension": self.dimension, "kind": kind}
            watched = child("made", self.work, **settings, memory=self.memory)
            yield {kind: watched.event("made")}

    def stores(self) -> Iterator[Record]:
        """Other stores, and ours, in fewer rows."""
        script = str(Path(__file__).with_name("index_rivals.py"))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        made: Record = {}
        for name in STORES:
            tell(f"store: {name}")
            out = self.work / "store"
            settings = {"data": str(self.work), "out": str(out), "count": self.few}
            python = sys.executable if name.startswith("ours") else self.python
            environment = {
                **ENVIRONMENT,
                "EPIC_CACHE_DIR": str(self.work / "cache"),
                "PYTHONPATH": path,
            }
            if name not in SAME_FOLDER:
                shutil.rmtree(out, ignore_errors=True)
                made = {}
            record: Record = {}
            for step in ("build", "search"):
                if step == "build" and made:
                    record[step] = made
                    continue
                command = [python, script, step, name, json.dumps(settings)]
                watched = Watched(command, environment, STORE_LIMIT)
                record[step] = {
                    **watched.event("built" if step == "build" else "searched"),
                    **watched.event("note"),
                    "memory": watched.memory,
                }
                if watched.failed:
                    record["failed"] = {"after": watched.seconds, **watched.event("progress")}
                    break
                made = record["build"]
            yield {name: record}
        shutil.rmtree(self.work / "store", ignore_errors=True)

    def throughput(self) -> Iterator[Record]:
        """Building beside encoding alone."""
        yield child("throughput", self.work, passages=1200, rounds=6).event("measured")


PARTS: dict[str, Callable[[Run], Iterator[Record]]] = {
    "build": Run.build,
    "opening": Run.opening,
    "kinds": Run.comparison,
    "made": Run.made,
    "stores": Run.stores,
    "throughput": Run.throughput,
}


def drop_from_cache(folder: Path) -> None:
    """Have the system forget the pages of all files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def medians(records: list[Record]) -> Record:
    """Of each number in records of one shape."""
    return {
        key: medians([record[key] for record in records])
        if isinstance(value, dict)
        else float(np.median([record[key] for record in records]))
        for key, value in records[0].items()
    }


def environment() -> Record:
    """What the figures belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    ).stdout.strip()
    versions = {}
    for name in ("numpy", "faiss-cpu", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": " ".join(["benchmarks/index.py", *(a for a in sys.argv[1:] if "/" not in a)]),
        "commit": commit,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_average_at_begin": os.getloadavg()[0],
        "versions": versions,
    }


# --- tables and the picture ---------------------------------------------------------------------


def report(results: Record) -> Iterator[str]:
    """The results as lines of Markdown."""
    if "build" in results:
        one = results["build"]
        yield from ("", "| stage | seconds | anonymous memory, MiB |", "|---|---|---|")
        peaks = one["memory"]["anonymous_peak_by_stage"]
        for name, spent in one["seconds_by_stage"].items():
            yield f"| {name} | {spent:.1f} | {peaks.get(name, 0) / 2**20:,.0f} |"
    if "kinds" in results:
        yield ""
        yield (
            "| kind | queries | recall | by hand | queries/s | ratio (95 %) | of processor time | "
            "with passages | of processor time |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for kind, one in results["kinds"].items():
            for way in ("single queries", "batches of 64"):
                if way in one:
                    yield kind_line(kind, way, one)
    if "stores" in results:
        yield ""
        yield "| store | build, s | memory, MiB | serving, MiB | p50, ms | p95 | recall |"
        yield "|---|---|---|---|---|---|---|"
        for name in STORES:
            one = results["stores"].get(name, {})
            if "search" in one:
                found, made = one["search"], one["build"]
                memory = [
                    f"{part['memory']['anonymous_peak'] / 2**20:,.0f}" for part in (made, found)
                ]
                yield (
                    f"| {name} | {made['seconds']:.1f} | {memory[0]} | {memory[1]} | "
                    f"{found['p50_ms']:.2f} | {found['p95_ms']:.2f} | {found['recall']:.3f} |"
                )
    for part in ("opening", "throughput"):
        if part in results:
            yield from ("", json.dumps(results[part], indent=1))


def kind_line(kind: str, way: str, one: Record) -> str:
    """A line of the table of kinds."""
    part, recall = one[way], one["recall"]
    ratio = part["speed_over_by_hand"]["ours"]
    fetched = part["speed_over_by_hand_with_passages"]
    return (
        f"| {kind} | {way} | {recall['ours']:.3f} | {recall['by hand']:.3f} | "
        f"{part['queries_per_second']['ours']:,.0f} | {shown(ratio)} | "
        f"{shown(ratio['of_processor_time'])} | {shown(fetched)} | "
        f"{shown(fetched['of_processor_time'])} |"
    )


def shown(ratio: Record) -> str:
    """A ratio and its interval."""
    low, high = ratio["interval"]
    return f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})"


def draw(results: Record, path: Path) -> None:
    """Stages of the build, kinds, and stores, as one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(17, 4.6), layout="constrained")
    if "build" in results:
        one = results["build"]
        names, seconds = zip(*one["seconds_by_stage"].items(), strict=True)
        axes[0].barh(names, seconds)
        axes[0].invert_yaxis()
        peak = one["memory"]["anonymous_peak"] / 2**30
        axes[0].set(
            xlabel="seconds",
            title=f"{one['factory']}: {one['seconds']:.0f} s, peak {peak:.2f} GiB anonymous",
        )
    compared = {k: v for k, v in results.get("kinds", {}).items() if "single queries" in v}
    for way, mark in (("ours", "o"), ("by hand", "x"), ("by hand, not rescored", "+")):
        speeds = [v["single queries"]["queries_per_second"][way] for v in compared.values()]
        axes[1].plot(speeds, [v["recall"][way] for v in compared.values()], mark, label=way)
    for kind, one in compared.items():
        spot = one["single queries"]["queries_per_second"]["ours"], one["recall"]["ours"]
        axes[1].annotate(kind, spot, (0, -14), textcoords="offset points", ha="center")
    axes[1].set(xlabel="single queries per second", ylabel="recall@10", title="kinds")
    axes[1].legend(loc="center left")
    marks = "oosDv^<>PX*"
    for mark, name in zip(marks, STORES, strict=False):
        one = results.get("stores", {}).get(name, {})
        if "search" in one:
            found = one["search"]
            label = f"{name}: {found['recall']:.2f}"
            axes[2].plot(found["p50_ms"], one["build"]["seconds"], mark, label=label, alpha=0.8)
    axes[2].set(xlabel="query p50, ms", ylabel="build, seconds", xscale="log", yscale="log")
    for axis in (axes[2].xaxis, axes[2].yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes[2].legend(title="100,000 vectors: recall@10", bbox_to_anchor=(1, 1), loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    rows: Annotated[int, typer.Option(min=10_000, help="Of the large index.")] = 1_000_000,
    dimension: Annotated[int, typer.Option(min=8, help="Of all vectors.")] = 384,
    max_memory: Annotated[str, typer.Option(help="For structures, such as 1.5G.")] = "1.5G",
    out: Annotated[Path | None, typer.Option(help="JSON file; a picture goes beside it.")] = None,
    only: Annotated[str, typer.Option(help="Parts, with commas between.")] = ",".join(PARTS),
    kinds: Annotated[str, typer.Option(help="Kinds, with commas between.")] = ",".join(KINDS),
    work: Annotated[Path | None, typer.Option(help="Kept; else a temporary folder.")] = None,
    python: Annotated[str, typer.Option(help="Has the other stores.")] = sys.executable,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, print, write."""
    if child is not None:
        step, settings = json.loads(child)
        CHILDREN[step](Path(settings.pop("work")), **settings)
        return
    memory = bytes_of(max_memory)
    if memory is None or not set(only.split(",")) <= set(PARTS):
        raise typer.BadParameter(f"the parts are {', '.join(PARTS)}")
    results: Record = json.loads(out.read_bytes()) if out is not None and out.exists() else {}
    with contextlib.ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_data(work, rows, dimension)
        run = Run(work, rows, dimension, memory, python, tuple(kinds.split(",")))
        for part in (name for name in PARTS if name in only.split(",")):
            tell(part)
            about, started = environment(), time.monotonic()
            if results.get(part, {}).get("environment", {}).get("rows") != rows:
                results[part] = {}
            for record in PARTS[part](run):
                about |= {"rows": rows, "dimension": dimension}
                about |= {"seconds": time.monotonic() - started}
                results[part] = {**results[part], **record, "environment": about}
                if out is not None:
                    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for line in report(results):
        typer.echo(line)
    if out is not None:
        draw(results, out.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
