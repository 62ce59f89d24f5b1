"""`epic demo`: plain-English questions to the documentation of Python's standard library.

Puts the library's parts together as a user would. Needs no network, and no file but its own.
"""

import platform
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from epic_retrieval.cli.models import ModelOption, load_encoder
from epic_retrieval.errors import EpicError, InputError, MissingExtraError, PassageIndexError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from epic_retrieval.cli.latency import Condition
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Passage, PassageIndex
    from epic_retrieval.tasks import Task
    from langchain_epic import EpicEmbeddings

TASK = "python-docs"
# Raised when the passages change: what is extracted, or how it is cut.
_CORPUS_VERSION = 2
_LOOK_AGAIN = 1.0  # seconds
QUESTIONS = (
    "remove duplicates but keep order",
    "wait for a subprocess with a timeout",
    "which elements of a list occur most often?",
    "copy a folder with everything inside it",
    "a temporary folder that is deleted afterwards",
    "break long lines of text at a given width",
    "pick a few random items, none of them twice",
    "turn a JSON text into Python objects",
    "how similar are two strings?",
)


def demo(
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION", help="Answered alone, in place of all else that is shown."
        ),
    ] = None,
    model: ModelOption = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time to spend on comparing latencies; 0 leaves it out.")
    ] = 10.0,
) -> None:
    """Search the documentation of Python's own library; compare the latency of prompts."""
    from rich.console import Console

    if not all(question.strip() for question in questions or ()):
        raise InputError('a question is empty; expected text, as in: epic demo "copy a file"')
    try:
        from langchain_epic import EpicEmbeddings
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the demo needs langchain_epic, which this installation lacks; "
            "run: pip install 'epic-retrieval[cpu,langchain]'"
        ) from error

    terminal = Console(highlight=False)
    # A log has no width; 80 columns, which it would get, cut names in half.
    console = terminal if terminal.is_terminal else Console(highlight=False, width=110)
    encoder = load_encoder(model)
    embeddings = EpicEmbeddings(task=TASK, encoder=encoder)
    with _open_index(encoder, console) as index:
        console.print(
            f"Task {TASK}, mode {encoder.default_mode(embeddings.task)}. A small model: expect the "
            "right neighbourhood more often than the right answer.",
            soft_wrap=True,
        )
        for question in questions or QUESTIONS:
            answer(console, index, embeddings, question)
        if questions:
            return
        if seconds:
            _compare_latency(console, encoder, seconds)
        if sys.stdin.isatty():
            _converse(console, index, embeddings)


def answer(
    console: "Console", index: "PassageIndex", embeddings: "EpicEmbeddings", question: str
) -> None:
    """Prints the three best passages: cosine, qualified name, first line of the docstring."""
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    vector = np.array([embeddings.embed_query(question)], dtype=np.float32)
    (hits,) = index.search(vector, k=3)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, min_width=7)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=44)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for hit in hits:
        first_line = hit.passage.text.partition("\n")[0]
        table.add_row(f"{hit.score:7.3f}", Text(hit.passage.id, style="bold"), Text(first_line))
    console.print(Text(f"\n{question}", style="cyan"))
    console.print(table)


def _open_index(encoder: "EpicEncoder", console: "Console") -> "PassageIndex":
    """The index from the cache folder; built on the first run, and whenever it is not intact."""
    from epic_retrieval.index import PassageIndex
    from epic_retrieval.index._lock import LockHeldError
    from epic_retrieval.storage import cache_folder

    name = (
        f"python-{platform.python_version()}-v{_CORPUS_VERSION}"
        f"-{encoder.passage_fingerprint()[:16]}"
    )
    folder = cache_folder() / "demo" / name
    waiting = False
    while True:
        if folder.exists():
            try:
                index = PassageIndex.open(folder, check=True)
            except PassageIndexError as error:
                if not waiting:
                    console.print(f"The kept index cannot be used: {error}", soft_wrap=True)
            else:
                console.print(f"{index.manifest.count:,} docstrings, from {folder}", soft_wrap=True)
                return index
        try:
            _build_index(encoder, folder, console)
        except LockHeldError:
            if not waiting:
                console.print(
                    f"Another process builds {folder}: waiting until it is done. To build another "
                    "one, set EPIC_CACHE_DIR to another folder.",
                    soft_wrap=True,
                )
            waiting = True
            time.sleep(_LOOK_AGAIN)
        else:
            return PassageIndex.open(folder, check=True)


def _build_index(encoder: "EpicEncoder", folder: "Path", console: "Console") -> None:
    from epic_retrieval.cli.building import build_with_progress
    from epic_retrieval.index._workplace import workplace
    from epic_retrieval.stdlib_docs import stdlib_summaries

    def announced() -> "Iterator[Passage]":
        """Nothing is taken of it before this process is the one that builds."""
        console.print(
            f"Encoding {len(passages):,} docstrings of Python {platform.python_version()}, once."
        )
        yield from passages

    with workplace(folder, overwrite=True):
        pass  # reading all of the library takes a while: whoever must wait need not
    passages = list(stdlib_summaries())
    start = time.perf_counter()
    build_with_progress(
        encoder,
        announced(),
        folder,
        total=len(passages),
        corpus=f"Python {platform.python_version()} standard library",
        overwrite=True,
    )
    console.print(f"Done in {time.perf_counter() - start:.0f} s, kept in {folder}", soft_wrap=True)


def _compare_latency(console: "Console", encoder: "EpicEncoder", seconds: float) -> None:
    from rich import box
    from rich.table import Table

    from epic_retrieval.cli.latency import CONDITIONS, measure
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.prompt_cache import PromptCache
    from epic_retrieval.tasks import load_task

    def fresh() -> EpicEncoder:
        """The same weights with an empty cache: preparation is part of what is shown."""
        copy = EpicEncoder(encoder.checkpoint, PromptCache(None))
        copy.passage_fingerprint()  # reads the weights' checksum, which is no part of it
        return copy

    table = Table(
        title=f"\nOne query at a time on {encoder.device}, medians of this run",
        title_justify="left",
        title_style="cyan",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("prompt", no_wrap=True)
    for heading in ("prompt tokens", "once per task, ms", "per query, ms"):
        table.add_column(heading, justify="right")
    task = load_task(TASK)
    possible = [row for row in CONDITIONS if _is_possible(console, encoder, task, row)]
    for row in measure(fresh, task, QUESTIONS, seconds=seconds, conditions=possible):
        once = "-" if row.prepare_ms is None else f"{row.prepare_ms:.1f}"
        table.add_row(row.condition.label, str(row.prompt_tokens), once, f"{row.query_ms:.1f}")
    console.print(table)
    console.print(
        "The first three share their prompt among all queries, as this library always does; there\n"
        "vectors save positions, and with them memory and context, more than time. The others run\n"
        "it each time."
    )


def _is_possible(
    console: "Console", encoder: "EpicEncoder", task: "Task", condition: "Condition"
) -> bool:
    """Whether a model can do it; one may have no projector, or too few positions."""
    try:
        encoder.prepare(task, condition.mode)
    except EpicError as error:
        console.print(f"Left out, {condition.label}: {error}", soft_wrap=True)
        return False
    return True


def _converse(console: "Console", index: "PassageIndex", embeddings: "EpicEmbeddings") -> None:
    console.print("\nYour own questions; an empty line ends.")
    while True:
        try:
            question = console.input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        answer(console, index, embeddings, question)
