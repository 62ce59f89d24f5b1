"""Arguments and options that several commands of `epic index` and `epic encode` have in common.

Knows nothing of what is done with them.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from epic_retrieval.errors import InputError

TASK_HELP = "A built-in task (see `epic tasks`), or the path of a task file."

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# Structures are written in groups of lists of this size.
_LEAST_MEMORY = 32 * 2**20

Folder = Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CorpusArgument = Annotated[
    Path,
    typer.Argument(
        help="JSONL, CSV, TSV or Parquet file, a folder of .txt and .md files (YAML front matter "
        "becomes metadata), or a BEIR folder.",
        show_default=False,
    ),
]
MaxCharsOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="A longer passage is an error. Of the others the model reads as many tokens as it "
        "can; how many go beyond is said at the end.",
    ),
]
SkipEmptyOption = Annotated[
    bool, typer.Option("--skip-empty", help="Leave out passages without text.")
]
TypesOption = Annotated[
    str | None,
    typer.Option(
        help="Of metadata that a table holds as text, for filters: year=int,price=float,free=bool.",
        show_default=False,
    ),
]
StoreOption = Annotated[
    Literal["float32", "float16"],
    typer.Option("--store", help="Stored vectors; float16 takes half the space."),
]
DimOption = Annotated[
    int | None,
    typer.Option(
        "--dim", min=1, help="Keep so many dimensions (Matryoshka models).", show_default=False
    ),
]
ShardSizeOption = Annotated[
    int, typer.Option(min=1, help="Passages in a shard: what a crash can lose at most.")
]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option(help="ray: on a cluster, or all of this machine.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Of ray; by default one a core or GPU.", show_default=False),
]
KindOption = Annotated[
    str,
    typer.Option(
        help="auto, flat, hnsw, ivf, ivf-sq8, ivf-pq, or a string of FAISS's index_factory."
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="What the structure may take while it is built, such as 1.5G; by default half of "
        "what is free.",
        show_default=False,
    ),
]
RecallOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Wished recall@10 against exact search.")
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        help='Only passages whose metadata match, as JSON: {"year": {"$gte": 2000}}. Operators: '
        "$eq $ne $gt $gte $lt $lte $in $nin $exists; $and $or $not; _id is the id.",
        show_default=False,
    ),
]


def bytes_of(size: str | None) -> int | None:
    """Bytes of a size such as 1.5G, 800M or 2000000; units are powers of 1024.

    Raises:
        InputError: It is none.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(size.strip())
    if found is None or not float(found[1]):
        raise InputError(f"{size!r} is no size; expected one such as 1.5G, 800M or 2000000")
    return int(float(found[1]) * 1024 ** _UNITS[found[2].lower()])


def memory_of(size: str | None) -> int | None:
    """Bytes that a structure may take, for `--max-memory`.

    Raises:
        InputError: It is no size, or less than any structure needs.
    """
    found = bytes_of(size)
    if found is not None and found < _LEAST_MEMORY:
        raise InputError(
            f"--max-memory is {size}: expected at least {_LEAST_MEMORY // 2**20}M; leave it out to "
            "take half of what is free"
        )
    return found


def types_of(types: str | None) -> dict[str, str]:
    """Types of columns, for `--types`.

    Raises:
        InputError: It is not written as year=int,price=float.
    """
    found: dict[str, str] = {}
    for part in (types or "").split(","):
        name, sign, kind = (word.strip() for word in part.partition("="))
        if not (name and sign and kind):
            if types is None:
                break
            raise InputError(f"--types is {types!r}; expected such as year=int,price=float")
        if found.setdefault(name, kind) != kind:
            raise InputError(f"--types gives {name} two types, {found[name]} and {kind}")
    return found


def check_workers(engine: str, workers: int | None) -> None:
    """Make sure that `--workers` has a meaning.

    Raises:
        InputError: It has none without Ray.
    """
    if engine == "local" and workers is not None:
        raise InputError("--workers goes with --engine ray; leave it out, or add that")
