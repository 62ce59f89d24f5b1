"""Progress of index builds on stderr; shared by `epic index`, `epic encode` and the demo.

Knows nothing of corpora; passages come as they are.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_retrieval.cli.models import encoder_info
from epic_retrieval.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Manifest, Passage
    from epic_retrieval.index.encode import Progress
    from epic_retrieval.tasks import Task

# A file that takes longer than a moment to count is encoded without a total.
_COUNT_AT_MOST = 2**30
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def build_with_progress(
    encoder: "EpicEncoder",
    passages: "Iterable[Passage]",
    out: Path,
    *,
    task: "Task | None" = None,
    batch_size: int | None = None,
    **options: Any,  # noqa: ANN401 (they are checked where they arrive)
) -> "Manifest":
    """Encodes passages and writes them as the index folder `out`.

    Args:
        encoder: encodes the passages; the index remembers it.
        passages: any number, streamed.
        out: the folder to write.
        task: matters when it is symmetric: its passages are then encoded behind its prompt.
        batch_size: most texts in a forward pass; None takes what memory allows.
        options: of `build_index`.

    Raises:
        InputError, PassageIndexError, MissingExtraError: as `build_index` does.
    """
    from epic_retrieval.index import build_index

    with stage_bars() as progress:
        return build_index(
            passages,
            passage_function(encoder, task, batch_size),
            out,
            encoder=encoder_info(encoder, task),
            progress=progress,
            **options,
        )


def passage_function(
    encoder: "EpicEncoder", task: "Task | None", batch_size: int | None
) -> "Callable[[list[str]], NDArray[np.float32]]":
    """What an index needs of an encoder: texts in, vectors out."""
    return lambda texts: encoder.encode_passages(
        texts, task, batch_size=batch_size, show_progress=False
    )


def make_encode(
    model: str | None,
    device: str | None,
    dtype: str | None,
    task: "Task | None",
    batch_size: int | None,
) -> "Callable[[list[str]], NDArray[np.float32]]":
    """The same in another process, which loads the encoder for itself."""
    from epic_retrieval.cli.models import load_encoder

    return passage_function(load_encoder(model, device, dtype), task, batch_size)


@contextmanager
def stage_bars() -> "Iterator[Callable[[Progress], None]]":
    """A progress bar for each stage of a build on stderr, and what was chosen and why."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}
    notes: set[str] = set()

    def show(now: "Progress") -> None:
        if now.stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[now.stage] = tqdm(desc=now.stage, total=now.total, unit=" passages", smoothing=0.1)
        bar = bars[now.stage]
        if now.reused and not bar.initial:
            # What was done before must not make the rest look quicker than it is.
            bar.initial = now.reused
        if now.note and now.note not in notes:
            notes.add(now.note)
            tqdm.write(now.note, file=sys.stderr)
        if now.bytes_written:
            bar.set_postfix_str(f"{now.bytes_written / 1e6:,.0f} MB", refresh=False)
        bar.update(now.passages - bar.n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def bytes_of(size: str | None) -> int | None:
    """Bytes of a size such as 1.5G, 800M or 2000000; units are powers of 1024.

    Raises:
        InputError: it is none.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(size.strip())
    if found is None or not float(found[1]):
        raise InputError(f"{size!r} is no size; expected one such as 1.5G, 800M or 2000000")
    return int(float(found[1]) * 1024 ** _UNITS[found[2].lower()])


def quick_count(corpus: Path) -> int | None:
    """Number of lines of a JSON Lines file of moderate size; None where counting would cost."""
    path = corpus / "corpus.jsonl" if corpus.is_dir() else corpus
    if path.suffix != ".jsonl" or not path.is_file() or path.stat().st_size > _COUNT_AT_MOST:
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
