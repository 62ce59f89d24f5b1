"""`epic analyze`: how long prompts are, and what the end token looks at behind them.

Parses, calls `epic_retrieval.analysis`, prints.
"""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epic_retrieval.cli.models import DeviceOption, DtypeOption, ModelOption, load_encoder
from epic_retrieval.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epic_retrieval.analysis import AttentionShares, KeyValueShape, PromptSize
    from epic_retrieval.tasks import Task

analyze_app = typer.Typer(
    no_args_is_help=True, help="Measure prompts: what they occupy, and what is looked at."
)

_LONGEST_LINE = 2**26  # bytes
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

QueriesOption = Annotated[
    Path | None,
    typer.Option(
        help='A .txt file, one query a line, or .jsonl with "text" or "query".', show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@analyze_app.command()
def prompt(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="Tasks by name or file, or a folder of bge-en-icl's demonstration files.",
            show_default=False,
        ),
    ],
    *,
    model: ModelOption = None,
    template: Annotated[
        str | None,
        typer.Option(help="For a model without epic_config.json.", show_default=False),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Layers x key-value heads x head size, such as 32x8x128, or mistral-7b,"
            " llama-3.1-8b, qwen2.5-7b, qwen3-0.6b; by default the model's own.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of keys and values: float32, bfloat16, float16.")] = (
        "bfloat16"
    ),
    queries: QueriesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Positions and memory of prompts as text and as vectors; needs no weights."""
    from epic_retrieval.analysis import key_value_shape, prompt_size
    from epic_retrieval.checkpoint import BUNDLED_MODEL, load_tokenizer

    if dtype not in _BYTES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_BYTES)}")
    asked = [] if queries is None else read_queries(queries)
    found = key_value_shape(shape, Path(model or BUNDLED_MODEL))
    tokenizer, config = load_tokenizer(model, template)
    sizes = [prompt_size(tokenizer, config, task, asked) for task in _tasks(tasks)]
    per_position = None if found is None else found.bytes_per_position(_BYTES[dtype])
    if as_json:
        typer.echo(json.dumps([_size_row(one, per_position) for one in sizes], indent=2))
    else:
        _print_sizes(sizes, found, per_position, dtype)


def _tasks(named: "Sequence[str]") -> "list[Task]":
    from epic_retrieval.tasks import icl_tasks, load_task

    found = []
    for name in named:
        if Path(name).is_dir():
            found += list(icl_tasks(name).values())
        else:
            found.append(load_task(name))
    return found


def _size_row(size: "PromptSize", per_position: int | None) -> dict[str, Any]:
    modes = {"none": size.none, "text": size.text, "epic": size.epic}
    return {
        "task": size.task,
        "demonstrations": size.demonstrations,
        "positions": modes,
        "query_tokens": size.query,
        "bytes": None
        if per_position is None
        else {
            mode: None if count is None else count * per_position for mode, count in modes.items()
        },
    }


def _print_sizes(
    sizes: "list[PromptSize]", shape: "KeyValueShape | None", per_position: int | None, dtype: str
) -> None:
    width = max(len("TASK"), *(len(one.task) for one in sizes))
    memory = "" if per_position is None else "  MIB TEXT  MIB EPIC"
    typer.echo(f"{'TASK':{width}}  DEMOS   NONE   TEXT   EPIC  SAVED{memory}")
    for one in [*sizes, *([_mean(sizes)] if len(sizes) > 1 else [])]:
        saved = 1 - one.epic / one.text if one.epic else None
        line = f"{one.task:{width}}  {one.demonstrations:5}  {one.none:5}  {one.text:5}"
        line += f"  {_or_dash(one.epic, '5')}  {_or_dash(saved, '5.0%')}"
        if per_position is not None:
            kept = None if one.epic is None else one.epic * per_position / 2**20
            line += f"  {one.text * per_position / 2**20:8.2f}  {_or_dash(kept, '8.2f')}"
        typer.echo(line)
    notes = ["positions before the query; saved: by vectors in place of text"]
    if sizes[0].query is not None:
        lengths = [one.query for one in sizes if one.query is not None]
        notes.append(f"a query adds {sum(lengths) / len(lengths):.1f} tokens on average")
    if shape is None:
        notes.append("memory is unknown: name the model's shape with --shape")
    else:
        layers = f"{shape.layers} layers x {shape.heads} key-value heads x {shape.size}"
        notes.append(
            f"memory of keys and values: {layers}, {dtype}, {per_position:,} bytes a position"
        )
    typer.echo("\n" + "\n".join(notes))


def _mean(sizes: "list[PromptSize]") -> "PromptSize":
    from epic_retrieval.analysis import PromptSize

    def mean(values: list[int]) -> int:
        return round(sum(values) / len(values))

    vectors = [one.epic for one in sizes if one.epic is not None]
    return PromptSize(
        "mean",
        mean([one.demonstrations for one in sizes]),
        mean([one.none for one in sizes]),
        mean([one.text for one in sizes]),
        mean(vectors) if vectors else None,
    )


def _or_dash(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:{form}}"


@analyze_app.command()
def attention(
    task: Annotated[str, typer.Argument(help="A built-in task or a task file.")],
    *,
    queries: Annotated[
        Path,
        typer.Option(
            help='A .txt file, one query a line, or .jsonl with "text" or "query".',
            show_default=False,
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Queries to measure on.")] = 32,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="none, text or epic; may be repeated. By default all that are possible.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all layers as JSON.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw them: a .png, .svg or .pdf file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How much of the end token's attention goes to the first token, and to what else."""
    from epic_retrieval.analysis import attention_shares
    from epic_retrieval.prompt import check_mode
    from epic_retrieval.tasks import load_task

    if plot is not None and plot.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise InputError(f"{plot}: expected a file that ends in .png, .svg or .pdf")
    found = load_task(task)
    texts = read_queries(queries, count)
    asked = [check_mode(one) for one in mode or ()]
    encoder = load_encoder(model, device, dtype)
    if not asked:
        asked = [check_mode("none"), *([check_mode("text")] if found.demonstrations else [])]
        needed = encoder.checkpoint.config.method.needs_demonstrations
        if encoder.reads_vectors and (found.demonstrations or not needed):
            asked.append("epic")
    measured = [attention_shares(encoder, found, texts, one) for one in dict.fromkeys(asked)]
    record = {
        "model": Path(encoder.name).name if Path(encoder.name).is_dir() else encoder.name,
        "task": found.name,
        "queries": len(texts),
        "modes": {one.mode: _shares_row(one) for one in measured},
    }
    if out is not None:
        _write(out, record)
    if plot is not None:
        _draw(measured, plot)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        _print_shares(measured)


def _shares_row(shares: "AttentionShares") -> dict[str, Any]:
    from epic_retrieval.analysis import SEGMENTS

    return {
        "tokens": dict(zip(SEGMENTS, shares.tokens.round(2).tolist(), strict=True)),
        "layers": [
            dict(zip(SEGMENTS, row, strict=True)) for row in shares.shares.round(5).tolist()
        ],
    }


def _print_shares(measured: "list[AttentionShares]") -> None:
    """The layers of Table 9: at each quarter of the depth."""
    from epic_retrieval.analysis import SEGMENTS

    columns = [max(len(one), 6) for one in SEGMENTS]
    names = "  ".join(f"{one.upper():>{w}}" for one, w in zip(SEGMENTS, columns, strict=True))
    typer.echo(f"MODE   LAYER  {names}")
    for one in measured:
        depth = len(one.shares)
        quarters = sorted({max(1, round(depth * part / 4)) for part in (1, 2, 3, 4)})
        rows = [(str(layer), one.shares[layer - 1], "6.3f") for layer in quarters]
        rows += [("mean", one.shares.mean(axis=0), "6.3f"), ("tokens", one.tokens, "6.1f")]
        for label, values, form in rows:
            cells = "  ".join(f"{v:>{w}{form[1:]}}" for v, w in zip(values, columns, strict=True))
            typer.echo(f"{one.mode:5}  {label:>6} {cells}")
    typer.echo(
        f"\nshares of the end token's attention, means over heads and {measured[0].queries} queries"
    )


def _write(out: Path, record: dict[str, Any]) -> None:
    from epic_retrieval.storage import write_atomically

    write_atomically(out, (json.dumps(record, indent=2) + "\n").encode())


def _draw(measured: "list[AttentionShares]", path: Path) -> None:
    """One panel a mode, one stacked bar a layer."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"drawing needs matplotlib ({error}); run: pip install 'epic-retrieval[bench]'"
        ) from error
    import numpy as np

    from epic_retrieval.analysis import SEGMENTS

    figure = Figure(figsize=(4 * len(measured), 3.2), layout="constrained")
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for panel, one in zip(panels, measured, strict=True):
        layers = np.arange(1, len(one.shares) + 1)
        below = np.zeros(len(layers))
        for number, segment in enumerate(SEGMENTS):
            panel.bar(layers, one.shares[:, number], bottom=below, label=segment)
            below += one.shares[:, number]
        panel.set(title=one.mode, xlabel="layer", ylim=(0, 1))
    panels[0].set_ylabel("share of the end token's attention")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    figure.savefig(path, dpi=150)


def read_queries(path: Path, most: int | None = None) -> list[str]:
    """The first texts of a .txt or .jsonl file.

    Raises:
        InputError: for another ending, a line without a text, or a file without any.
    """
    from epic_retrieval.index._tables import jsonl_cells, text_lines

    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        rows = ((n, c.get("text", c.get("query"))) for n, c in jsonl_cells(path, _LONGEST_LINE))
    elif name.endswith((".txt", ".txt.gz")):
        lines = text_lines(path, _LONGEST_LINE)
        rows = ((n, line.strip()) for n, line in lines if line.strip())
    else:
        raise InputError(f'{path}: expected .txt, or .jsonl with "text" or "query"')
    texts = []
    for number, text in islice(rows, most):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{path}, line {number}: expected a text as "text" or "query"')
        texts.append(text)
    if not texts:
        raise InputError(f"{path} holds no queries; expected some")
    return texts
