"""What demonstrations cost in training: time of a step over that of plain contrastive training.

    python benchmarks/training_cost.py --out results.json

A random model of the Qwen2 family, random token ids of fixed mean lengths, so no data is needed.
All conditions take the same batches; rounds are interleaved, and a ratio is the median over rounds
of (a condition's step / the plain step of the same round), with a bootstrap interval. A step is
everything from the batch to the updated weights. Conditions differ in two settings only.
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import WhitespaceSplit
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from epic_retrieval import Task
from epic_retrieval.backbone import Backbone
from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.checkpoint_config import EpicConfig
from epic_retrieval.projector import Projector
from epic_retrieval.prompt import TEMPLATES
from epic_retrieval.tokenization import TextTokenizer
from epic_training.batch import Batch, Row
from epic_training.optimization import adamw
from epic_training.step import ContrastiveStep, StepConfig

SHAPES: dict[str, dict[str, int]] = {
    "qwen2-22m": {"hidden_size": 512, "intermediate_size": 1408, "layers": 8, "heads": 8, "kv": 2},
    "qwen2-4m": {"hidden_size": 256, "intermediate_size": 704, "layers": 4, "heads": 4, "kv": 2},
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "layers": 24,
        "heads": 14,
        "kv": 2,
    },
}
VOCABULARY = 4000
INSTRUCTION = 12  # tokens
CONDITIONS: dict[str, dict[str, Any]] = {
    "plain": {"mode": "none"},
    "epic, group-shared prompts": {"mode": "epic", "prompts": "group"},
    "epic, a prompt per query": {"mode": "epic", "prompts": "sample"},
    "text, group-shared prompts": {"mode": "text", "prompts": "group"},
    "text, a prompt per query": {"mode": "text", "prompts": "sample"},
}


class Always(np.random.Generator):
    """Draws the largest whole number: every prompt shows as many demonstrations as it may."""

    def integers(self, low: Any, high: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, ARG002, D102
        return high - 1


def word_tokenizer() -> TextTokenizer:
    """Token 7 is the text "w7": ids and texts lead to each other, whatever stands around."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return TextTokenizer(hf, bos_id=0, eos_id=1)


def make_step(shape: str, device: str, dtype: torch.dtype) -> ContrastiveStep:
    """A random model of this shape; every condition starts from it."""
    torch.manual_seed(0)
    size = SHAPES[shape]
    model = Qwen2Model(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=size["hidden_size"],
            intermediate_size=size["intermediate_size"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            num_key_value_heads=size["kv"],
            max_position_embeddings=8192,
        )
    )
    backbone = Backbone(torch.nn.Module.to(model, device=device, dtype=dtype))
    config = EpicConfig(TEMPLATES["epic"], 0, 1, max_length=512, modes=("epic", "none"))
    projector = Projector(backbone.dimension).to(device)
    checkpoint = Checkpoint("random", backbone, word_tokenizer(), projector, config)
    return ContrastiveStep(checkpoint, StepConfig())


def make_batch(size: int, query: int, passage: int, rng: np.random.Generator) -> Batch:
    """Rows whose lengths vary by a third around these means; one hard negative per query."""

    def rows(mean: int) -> list[Row]:
        lengths = rng.integers(mean - mean // 3, mean + mean // 3 + 1, size=size)
        return [[*rng.integers(3, VOCABULARY, n - 1).tolist(), 1] for n in lengths]

    def text(row: Row) -> str:
        return " ".join(f"w{token}" for token in row[:-1])

    queries, positives, negatives = rows(query), rows(passage), rows(passage)
    words = " ".join(f"w{token}" for token in rng.integers(3, VOCABULARY, INSTRUCTION))
    return Batch(
        Task("cost", words),
        queries,
        positives,
        negatives,
        owners=range(size),
        texts=[(text(q), text(p)) for q, p in zip(queries, positives, strict=True)],
    )


def interval(ratios: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median and a 95 % bootstrap interval of it."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, size=(2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def one_step(
    step: ContrastiveStep, optimizer: torch.optim.Optimizer, batch: Batch, rng: np.random.Generator
) -> tuple[float, float]:
    """Seconds of one training step, and demonstrations per query."""
    gpu = step.checkpoint.backbone.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=gpu):
        loss, parts = step(batch, rng)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started, float(parts["demonstrations"])


def measure(
    step: ContrastiveStep, config: StepConfig, args: dict[str, Any], *, fixed: bool
) -> list[dict[str, Any]]:
    """All conditions, interleaved; one record each."""
    conditions = {name: replace(config, **changed) for name, changed in CONDITIONS.items()}
    optimizer = adamw([(step.parameters(), 1e-6)], 0.0)
    step.train()
    seconds: dict[str, list[float]] = {name: [] for name in conditions}
    shown: dict[str, list[float]] = {name: [] for name in conditions}
    memory: dict[str, float] = {}
    gpu = step.checkpoint.backbone.device.type == "cuda"
    for number in tqdm(range(args["rounds"] + 1), desc="rounds"):
        batch = make_batch(
            args["batch"],
            args["query_tokens"],
            args["passage_tokens"],
            np.random.default_rng([1, number]),
        )
        names = list(conditions)
        for name in np.roll(names, number).tolist():
            step.config = conditions[name]
            bits = np.random.PCG64([2, number])
            rng = Always(bits) if fixed else np.random.Generator(bits)
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            spent, count = one_step(step, optimizer, batch, rng)
            if number:  # the first round warms up
                seconds[name].append(spent)
                shown[name].append(count)
            if gpu:
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
    plain = np.array(seconds["plain"])
    records = []
    for name, taken in seconds.items():
        median, low, high = interval(np.array(taken) / plain)
        record: dict[str, Any] = {
            "condition": name,
            "seconds": float(np.median(taken)),
            "over_plain": median,
            "interval": [low, high],
            "demonstrations_per_query": float(np.mean(shown[name])),
        }
        records.append(record | ({"peak_gib": memory[name]} if gpu else {}))
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    lines = [
        "| condition | step, s | over plain (95 %) | demonstrations per query |",
        "|---|---|---|---|",
    ]
    for one in records:
        low, high = one["interval"]
        lines.append(
            f"| {one['condition']} | {one['seconds']:.2f} | {one['over_plain']:.2f}"
            f" ({low:.2f} to {high:.2f}) | {one['demonstrations_per_query']:.1f} |"
        )
    return "\n".join(lines)


def environment(device: str) -> dict[str, Any]:
    """What the figures belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "gpu": gpu,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "qwen2-4m",
    batch: Annotated[int, typer.Option(min=4, help="Queries per step.")] = 64,
    query_tokens: Annotated[int, typer.Option(help="Mean, end token included.")] = 20,
    passage_tokens: Annotated[int, typer.Option(help="Mean, positives and negatives.")] = 150,
    rounds: Annotated[int, typer.Option(min=3, help="Steps per condition.")] = 10,
    rows_at_once: Annotated[int, typer.Option(help="Rows per forward pass.")] = 32,
    gradient_cache: Annotated[bool, typer.Option(help="Recompute activations.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure, print a table, write a JSON file."""
    args = {
        "batch": batch,
        "query_tokens": query_tokens,
        "passage_tokens": passage_tokens,
        "rounds": rounds,
    }
    config = StepConfig(
        rows_at_once=rows_at_once,
        gradient_cache=gradient_cache,
        demonstration_tokens=passage_tokens,
    )
    step = make_step(shape, device, torch.float32)
    results: dict[str, Any] = {}
    for name, fixed in (("0 to 5 demonstrations", False), ("5 demonstrations", True)):
        results[name] = measure(step, config, args, fixed=fixed)
        typer.echo(f"\n{name}\n\n{table(results[name])}\n")
    if out is not None:
        settings = args | {
            "shape": shape,
            "groups": config.groups,
            "instruction_tokens": INSTRUCTION,
            "rows_at_once": rows_at_once,
            "gradient_cache": gradient_cache,
        }
        record = {**environment(device), "settings": settings, "results": results}
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
