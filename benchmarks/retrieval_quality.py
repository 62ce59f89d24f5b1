"""nDCG@10 of the bundled model, BM25 and a static embedder on real retrieval sets.

    python benchmarks/retrieval_quality.py --data DATA [--model FOLDER] [--out FILE]

Indexes are built with `epic index build` and searched as `epic index search` does. Prints the table
of the README and writes everything that was measured, with commit and hardware, as JSON.
"""

import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import bm25s
import ir_measures
import numpy as np
import typer
import yaml
from ir_measures import Qrel, ScoredDoc, nDCG
from model2vec import StaticModel

from epic_retrieval import EpicEncoder, PassageIndex, Task, load_task
from epic_retrieval.prompt import MODES, Mode

HERE = Path(__file__).parent
Run = dict[str, dict[str, float]]  # query id -> passage id -> score


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


def ndcg(qrels: Sequence[Qrel], run: Run) -> float:
    """Mean nDCG@10 over all judged queries."""
    scored = (
        ScoredDoc(query, passage, score)
        for query, passages in run.items()
        for passage, score in passages.items()
    )
    return float(ir_measures.calc_aggregate([nDCG @ 10], qrels, scored)[nDCG @ 10])


def bm25_run(texts: Mapping[str, str], queries: Mapping[str, str], k: int) -> Run:
    """BM25 as the bm25s library does it by default."""
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(texts.values()), show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries.values()), show_progress=False)
    rows, scores = retriever.retrieve(tokens, k=k, show_progress=False)
    return _as_run(list(texts), queries, rows, scores)


def static_run(folder: Path, texts: Mapping[str, str], queries: Mapping[str, str], k: int) -> Run:
    """Exact search with a model2vec model."""
    model = StaticModel.from_pretrained(str(folder))
    passages, asked = model.encode(list(texts.values())), model.encode(list(queries.values()))
    scores = asked @ passages.T
    rows = np.argsort(-scores, axis=1)[:, :k]
    return _as_run(list(texts), queries, rows, np.take_along_axis(scores, rows, axis=1))


def _as_run(
    ids: Sequence[str], queries: Iterable[str], rows: np.ndarray, scores: np.ndarray
) -> Run:
    return {
        query: {ids[row]: float(score) for row, score in zip(found, values, strict=True)}
        for query, found, values in zip(queries, rows, scores, strict=True)
    }


def epic_run(
    encoder: EpicEncoder,
    index: PassageIndex,
    task: Task,
    mode: Mode,
    queries: Mapping[str, str],
    k: int,
) -> Run:
    """Search an index that the command line built."""
    vectors = encoder.encode_queries(list(queries.values()), task, mode, show_progress=False)
    hits = index.search(vectors, k)
    return {
        query: {hit.passage.id: hit.score for hit in found}
        for query, found in zip(queries, hits, strict=True)
    }


def measure(
    folder: Path, task: Task, encoders: Sequence[EpicEncoder], rival: Path, k: int
) -> dict[str, Any]:
    """All systems on one data set; nDCG@10 by system, and the seconds that each build took."""
    corpus = read_jsonl(folder / "corpus.jsonl")
    texts = {row["_id"]: f"{row.get('title', '')}\n{row['text']}".strip() for row in corpus}
    qrels = read_qrels(folder / "qrels.tsv")
    judged = {qrel.query_id for qrel in qrels}
    queries = {
        row["_id"]: row["text"]
        for row in read_jsonl(folder / "queries.jsonl")
        if row["_id"] in judged
    }
    scores = {
        "BM25": ndcg(qrels, bm25_run(texts, queries, k)),
        "potion-base-4m": ndcg(qrels, static_run(rival, texts, queries, k)),
    }
    seconds = {}
    for encoder in encoders:
        precision = encoder.checkpoint.backbone.precision.removeprefix("torch.")
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "index"
            command = [str(Path(sys.executable).with_name("epic")), "index", "build", str(folder)]
            command += ["--out", str(out), "--skip-empty", "--dtype", precision]
            if encoder.checkpoint.folders[0].name != "epic-mini":
                command += ["--model", str(encoder.checkpoint.folders[0])]
            started = time.monotonic()
            subprocess.run(command, check=True)
            seconds[precision] = round(time.monotonic() - started, 1)
            with PassageIndex.open(out) as index:
                for mode in reversed(MODES):
                    run = epic_run(encoder, index, task, mode, queries, k)
                    name = f"{encoder.checkpoint.name}, {mode}"
                    name += "" if precision == "float32" else f", {precision}"
                    scores[name] = ndcg(qrels, run)
    return {
        "task": task.name,
        "passages": len(texts),
        "queries": len(queries),
        "ndcg@10": scores,
        "build_seconds": seconds,
    }


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """The results as a Markdown table: systems down, data sets across."""
    systems = list(next(iter(results.values()))["ndcg@10"])
    lines = [
        "| nDCG@10 | " + " | ".join(results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    for system in systems:
        values = [f"{result['ndcg@10'][system]:.3f}" for result in results.values()]
        lines.append(f"| {system} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="folder with retrieval/ and models/")],
    model: Annotated[
        str | None, typer.Option(help="a checkpoint; default: the bundled one")
    ] = None,
    out: Annotated[Path, typer.Option()] = HERE / "results" / "retrieval_quality.json",
) -> None:
    """Measure, print the table, write the JSON."""
    plan = yaml.safe_load((HERE / "retrieval_quality.yaml").read_text(encoding="utf-8"))
    encoders = [EpicEncoder.from_pretrained(model, dtype=d) for d in ("float32", "int8")]
    results = {}
    for name, task in plan["datasets"].items():
        found = load_task(HERE / task if task.endswith(".yaml") else task)
        rival = data / "models" / "potion-base-4m-int8"
        results[name] = measure(data / "retrieval" / name, found, encoders, rival, plan["k"])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
    )
    record = {
        "command": "python benchmarks/retrieval_quality.py --data DATA",
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "model": encoders[0].name,
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    typer.run(main)
