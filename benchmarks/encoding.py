"""Time of encoding queries and passages, ours beside FlagEmbedding and sentence-transformers.

    python benchmarks/encoding.py --data DATA --out encoding.json

One random model of the Qwen2 family, saved once and loaded by every library, so that all do the
same work; the values of its weights do not matter for time. Real texts, real demonstrations
(bge-en-icl's for ArxivClusteringP2P, five of about 150 tokens), a real vocabulary. Conditions are
interleaved round by round; a ratio is the median over rounds of two times of the same round, with
a bootstrap interval. Vectors are compared in the same run. FlagEmbedding takes part where it is
installed (`pip install FlagEmbedding`); DATA is read in place.
"""

import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from epic_retrieval import Demonstration, EpicEncoder, EpicError, Task
from epic_retrieval.projector import Projector
from epic_retrieval.prompt import query_prompt
from epic_retrieval.prompt_cache import PromptCache

Vectors = NDArray[np.float32]
Work = Callable[[], Vectors]

SHAPES = {"22m": (512, 1408, 8, 8, 2), "0.5b": (896, 4864, 24, 14, 2)}
DEMONSTRATIONS = "ArxivClusteringP2P"
INSTRUCTION = (
    "Identify the main and secondary category of Arxiv papers based on titles and abstracts"
)
TEMPLATE = "bge-en-icl"
SEED = 0
LEAST_COSINE = 0.99  # of any two conditions that do the same work
# Reported and not checked: 8 bits, and a library that tokenises prompt and text as one string.
ROUGH = ("int8", "sentence-transformers, instruction")


def save_model(folder: Path, shape: str, vocabulary: Path) -> None:
    """A random model in transformers' layout, its tokenizer ending every text in the end token."""
    hf = AutoTokenizer.from_pretrained(vocabulary)
    end = "<|endoftext|>"
    hf.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, hf.convert_tokens_to_ids(end))]
    )
    hf.eos_token = hf.pad_token = end
    hf.chat_template = None  # sentence-transformers would wrap every text in a conversation
    hf.save_pretrained(folder)
    hidden, inner, layers, heads, shared = SHAPES[shape]
    torch.manual_seed(SEED)
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=len(hf),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            max_position_embeddings=4096,
        )
    )
    model.save_pretrained(folder)


def open_encoder(folder: Path, dtype: str = "float32") -> EpicEncoder:
    """Our encoder, with a random projector so that mode "epic" runs."""
    checkpoint = EpicEncoder.from_pretrained(
        folder, device="cpu", dtype=dtype, template=TEMPLATE
    ).checkpoint
    torch.manual_seed(SEED)
    projector = Projector(checkpoint.backbone.dimension).eval()
    projector.scale_to(torch.randn(64, projector.dimension), checkpoint.backbone.embedding_rms())
    return EpicEncoder(replace(checkpoint, projector=projector), PromptCache(None))


def read_texts(data: Path, tokenizer: Any, count: int) -> tuple[list[str], list[str]]:  # noqa: ANN401
    """Queries of 8 to 64 tokens, and passages of 20 to 300, of CoSQA, SciFact and NFCorpus."""

    def lines(name: str) -> list[dict[str, str]]:
        found = []
        for path in sorted((data / "retrieval").glob(f"*/{name}*")):
            if path.parent.name in {"cosqa", "scifact", "nfcorpus"}:
                raw = path.read_bytes()
                text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
                found += [json.loads(line) for line in text.split("\n") if line]
        return found

    rng = np.random.default_rng(SEED)

    def chosen(rows: list[dict[str, str]], low: int, high: int) -> list[str]:
        texts = []
        for i in rng.permutation(len(rows)):
            text = f"{rows[i].get('title', '')} {rows[i]['text']}".strip()
            if low <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) < high:
                texts.append(text)
            if len(texts) == count:
                break
        return texts

    return chosen(lines("queries.jsonl"), 8, 64), chosen(lines("corpus.jsonl"), 20, 300)


class Bench:
    """Conditions and their times.

    Args:
        rounds: how often each is timed after a warm-up.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.work: dict[str, Work] = {}
        self.often: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {}
        self.vectors: dict[str, Vectors] = {}

    def add(self, name: str, work: Work, rounds: int | None = None) -> None:
        """A condition; slow ones may be timed in fewer rounds."""
        self.work[name], self.often[name] = work, rounds or self.rounds

    def run(self) -> None:
        """Warm up, then time all conditions in turn."""
        for name, work in self.work.items():
            self.vectors[name], self.seconds[name] = work(), []
        names = list(self.work)
        for number in tqdm(range(self.rounds), desc="rounds"):
            for name in np.roll(names, number).tolist():
                if number < self.often[name]:
                    started = time.perf_counter()
                    self.work[name]()
                    self.seconds[name].append(time.perf_counter() - started)

    def ratio(self, above: str, below: str) -> dict[str, Any]:
        """How many times longer `above` takes, median and 95 % interval."""
        rounds = min(len(self.seconds[above]), len(self.seconds[below]))
        pairs = np.array(self.seconds[above][:rounds]) / np.array(self.seconds[below][:rounds])
        draws = np.random.default_rng(SEED).choice(pairs, size=(2000, rounds))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        return {
            "ratio": f"{above} / {below}",
            "median": float(np.median(pairs)),
            "interval": [float(low), float(high)],
            "rounds": rounds,
        }

    def cosine(self, one: str, other: str) -> dict[str, Any]:
        """The smallest cosine between two conditions' vectors of the same text."""
        least = float((self.vectors[one] * self.vectors[other]).sum(axis=1).min())
        return {"vectors": f"{one}, {other}", "smallest_cosine": least}


def query_bench(
    encoder: EpicEncoder, folder: Path, task: Task, queries: list[str], rounds: int, slow: int
) -> Bench:
    """All ways to encode a batch of queries."""
    bench = Bench(rounds)
    count = len(queries)

    def ours(mode: Any, *, share: bool = True) -> Work:  # noqa: ANN401 (a Mode)
        return lambda: encoder.encode_queries(
            queries, task, mode, batch_size=count, share_prefix=share
        )

    bench.add("no prompt", lambda: encode_bare(encoder, task, queries))
    bench.add("instruction, shared", ours("none"))
    bench.add("text, shared", ours("text"))
    bench.add("epic, shared", ours("epic"))
    bench.add("epic, prompt run again", ours("epic", share=False), slow)
    bench.add("text, prompt run again", ours("text", share=False), slow)
    flag = flag_model(folder, task)
    if flag is not None:
        bench.add(
            "text, FlagICLModel", lambda: flag.encode_queries(queries, batch_size=count), slow
        )
    return bench


def encode_bare(encoder: EpicEncoder, task: Task, queries: list[str]) -> Vectors:
    """The same token ids as behind a prompt, in the same engine, without the prompt."""
    checkpoint = encoder.checkpoint
    wording = query_prompt(checkpoint.config.template, task, "none")
    rows = checkpoint.tokenizer.text_ids(queries, wording, checkpoint.config.max_length)
    with torch.no_grad():
        states = checkpoint.backbone.encode(rows)
    vectors: Vectors = torch.nn.functional.normalize(states, dim=1).numpy()
    return vectors


def flag_model(folder: Path, task: Task) -> Any:  # noqa: ANN401 (None where it is not installed)
    """FlagEmbedding's in-context learning model with the task's demonstrations."""
    try:
        library: Any = import_module("FlagEmbedding")
    except ImportError:
        return None
    return library.FlagICLModel(
        str(folder),
        query_instruction_for_retrieval=task.instruction,
        query_instruction_format="<instruct>{}\n<query>{}",
        examples_for_task=[
            {"instruct": task.instruction, "query": one.query, "response": one.passage}
            for one in task.demonstrations
        ],
        use_fp16=False,
        devices="cpu",
    )


def sentence_transformer(folder: Path) -> Any:  # noqa: ANN401 (a SentenceTransformer)
    """The same model in sentence-transformers, pooling the last token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    body = modules.Transformer(str(folder))
    pooling = modules.Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[body, pooling, modules.Normalize()], device="cpu")


def passage_bench(
    exact: EpicEncoder,
    rough: EpicEncoder,
    other: Any,  # noqa: ANN401
    passages: list[str],
    rounds: int,
) -> Bench:
    """Passages without a prompt."""
    bench = Bench(rounds)
    bench.add("sentence-transformers", lambda: encode(other, passages))
    bench.add("ours, float32", lambda: exact.encode_passages(passages))
    bench.add("ours, int8", lambda: rough.encode_passages(passages))
    return bench


def single_bench(
    exact: EpicEncoder,
    rough: EpicEncoder,
    other: Any,  # noqa: ANN401
    task: Task,
    queries: list[str],
    rounds: int,
) -> Bench:
    """One query at a time, as an application asks: times are of all queries one after the other."""
    bench = Bench(rounds)
    opening = f"<instruct>{task.instruction}\n<query>"
    bench.add(
        "sentence-transformers, instruction",
        lambda: np.concatenate([encode(other, [opening + q + "\n<response>"]) for q in queries]),
    )
    for name, encoder in (("float32", exact), ("int8", rough)):
        for mode in ("none", "epic"):
            bench.add(f"ours, {mode}, {name}", one_by_one(encoder, task, mode, queries))
    return bench


def one_by_one(encoder: EpicEncoder, task: Task, mode: Any, queries: list[str]) -> Work:  # noqa: ANN401
    """Encode queries singly."""
    return lambda: np.concatenate([encoder.encode_queries([q], task, mode) for q in queries])


def encode(model: Any, texts: list[str]) -> Vectors:  # noqa: ANN401 (a SentenceTransformer)
    """Encode with sentence-transformers' own batch size."""
    vectors: Vectors = model.encode(texts, show_progress_bar=False)
    return vectors


def environment(threads: int) -> dict[str, Any]:
    """What the figures belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    versions = {}
    for name in ("torch", "transformers", "sentence-transformers", "FlagEmbedding"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        # Paths say nothing to others.
        "command": " ".join([Path(a).name if "/" in a else a for a in sys.argv]),
        "commit": commit,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions,
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder of data sets, read in place.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "22m",
    count: Annotated[int, typer.Option(min=8, help="Queries in a batch, and passages.")] = 64,
    rounds: Annotated[int, typer.Option(min=3, help="Of the fast conditions.")] = 9,
    slow: Annotated[int, typer.Option(min=2, help="Rounds of the slow conditions.")] = 3,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
) -> None:
    """Measure, print, write."""
    torch.set_num_threads(threads)
    rows = json.loads(
        (data / "bge-en-icl-demonstrations" / f"{DEMONSTRATIONS}.json").read_text(encoding="utf-8")
    )
    task = Task(
        "bench", INSTRUCTION, tuple(Demonstration(r["query"], r["response"]) for r in rows[:5])
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, shape, data / "tokenizers" / "qwen2")
        exact, rough = open_encoder(folder), open_encoder(folder, "int8")
        other = sentence_transformer(folder)
        queries, passages = read_texts(data, exact.checkpoint.tokenizer.hf, count)
        benches = {
            "queries": query_bench(exact, folder, task, queries, rounds, slow),
            "passages": passage_bench(exact, rough, other, passages, rounds),
            "single queries": single_bench(exact, rough, other, task, queries[:16], rounds),
        }
        for bench in benches.values():
            bench.run()
        result = summarise(benches, exact, task)
    for line in report(result):
        typer.echo(line)
    if out is not None:
        record = {**environment(threads), "shape": shape, "texts": count, **result}
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    apart = [
        one
        for one in result["agreement"]
        if one["smallest_cosine"] < LEAST_COSINE and not any(w in one["vectors"] for w in ROUGH)
    ]
    if apart:
        raise EpicError(f"not the same work: {apart}")


def summarise(benches: dict[str, Bench], encoder: EpicEncoder, task: Task) -> dict[str, Any]:
    """Times, ratios, and how far vectors agree."""
    queries, passages, single = benches.values()
    slow = [name for name in queries.work if "again" in name or "Flag" in name]
    library = "sentence-transformers, instruction"
    ratios = [queries.ratio(name, "epic, shared") for name in slow]
    ratios += [queries.ratio("epic, shared", "no prompt")]
    ratios += [queries.ratio("text, shared", "epic, shared")]
    ratios += [passages.ratio("sentence-transformers", f"ours, {d}") for d in ("float32", "int8")]
    ratios += [single.ratio(f"ours, epic, {d}", library) for d in ("float32", "int8")]
    same = [
        queries.cosine("epic, shared", "epic, prompt run again"),
        queries.cosine("text, shared", "text, prompt run again"),
        passages.cosine("sentence-transformers", "ours, float32"),
        passages.cosine("ours, float32", "ours, int8"),
        single.cosine(library, "ours, none, float32"),
        single.cosine("ours, epic, float32", "ours, epic, int8"),
    ]
    if "text, FlagICLModel" in queries.work:
        same.append(queries.cosine("text, shared", "text, FlagICLModel"))
    prefixes = {mode: encoder._prefix(task, mode) for mode in ("none", "epic", "text")}  # noqa: SLF001
    return {
        "milliseconds_per_text": {
            f"{part}: {name}": float(np.median(spent)) * 1e3 / len(bench.vectors[name])
            for part, bench in benches.items()
            for name, spent in bench.seconds.items()
        },
        "ratios": ratios,
        "agreement": same,
        "prompts": {
            mode: {"positions": prefix.length, "bytes": prefix.nbytes}
            for mode, prefix in prefixes.items()
        },
    }


def report(result: dict[str, Any]) -> list[str]:
    """The result as lines of Markdown."""
    lines = ["| condition | ms per text |", "|---|---|"]
    lines += [f"| {k} | {v:.2f} |" for k, v in result["milliseconds_per_text"].items()]
    lines += ["", "| ratio of times | median (95 %) |", "|---|---|"]
    for one in result["ratios"]:
        low, high = one["interval"]
        lines.append(f"| {one['ratio']} | {one['median']:.2f} ({low:.2f} to {high:.2f}) |")
    lines += ["", "| vectors of | smallest cosine |", "|---|---|"]
    lines += [f"| {one['vectors']} | {one['smallest_cosine']:.6f} |" for one in result["agreement"]]
    lines += ["", "| prompt | positions | MiB of keys and values |", "|---|---|---|"]
    for mode, one in result["prompts"].items():
        lines.append(f"| {mode} | {one['positions']} | {one['bytes'] / 2**20:.2f} |")
    return lines


if __name__ == "__main__":
    typer.run(main)
