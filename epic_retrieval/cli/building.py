"""Builds an index with a progress bar on stderr; shared by `epic index build` and the demo.

Knows nothing of corpora; passages come as they are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from epic_retrieval.cli.models import encoder_info

if TYPE_CHECKING:
    from epic_retrieval.encoder import EpicEncoder
    from epic_retrieval.index import Manifest, Passage
    from epic_retrieval.tasks import Task

# Passages that are encoded together: enough to sort by length, few enough for the bar to move.
_CHUNK = 1024
# A file that takes longer than a moment to count is encoded without a total.
_COUNT_AT_MOST = 2**30


def build_with_progress(
    encoder: "EpicEncoder",
    passages: "Iterable[Passage]",
    out: Path,
    *,
    task: "Task | None" = None,
    total: int | None = None,
    corpus: str = "",
    batch_size: int | None = None,
    overwrite: bool = False,
) -> "Manifest":
    """Encodes passages and writes them as the index folder `out`.

    Args:
        encoder: encodes the passages; the index remembers it.
        passages: any number, streamed.
        out: the folder to write.
        task: matters when it is symmetric: its passages are then encoded behind its prompt.
        total: number of passages for the progress bar, where it is known.
        corpus: name of the corpus, for the manifest.
        batch_size: most texts in a forward pass; None takes what memory allows.
        overwrite: replace an index that is there.

    Raises:
        InputError, PassageIndexError, MissingExtraError: as `build_index` does.
    """
    from tqdm import tqdm

    from epic_retrieval.index import build_index

    with tqdm(total=total, unit=" passages", smoothing=0.1) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        return build_index(
            passages,
            lambda texts: encoder.encode_passages(
                texts, task, batch_size=batch_size, show_progress=False
            ),
            out,
            encoder=encoder_info(encoder, task),
            chunk_size=_CHUNK,
            overwrite=overwrite,
            progress=advance,
            corpus=corpus,
        )


def quick_count(corpus: Path) -> int | None:
    """Number of lines of a JSON Lines file of moderate size; None where counting would cost."""
    path = corpus / "corpus.jsonl" if corpus.is_dir() else corpus
    if path.suffix != ".jsonl" or not path.is_file() or path.stat().st_size > _COUNT_AT_MOST:
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
