"""Finds what a folder of evaluation data holds: its kind, its splits, its files.

Two forms: BEIR's (`corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`), and a folder with one file a
split. Knows nothing of mteb.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from epic_retrieval.errors import InputError
from epic_retrieval.evaluation.local_files import ENDINGS, file_of, form_of, split_names
from epic_retrieval.storage import digest_of, digest_of_files
from epic_retrieval.tasks import Task
from epic_retrieval.tasks.files import SUFFIXES, read_document

Kind = Literal[
    "retrieval", "reranking", "sts", "pair_classification", "classification", "clustering"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_DEFAULT_SPLIT = "test"
TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class LocalSet:
    """One split of a folder of evaluation data.

    Attributes:
        folder: where it lies.
        kind: what is done with it.
        name: from its `meta.json`, else the folder's.
        split: which split is evaluated.
        files: what is read: corpus, queries and judgements; or the split, and for a classification
            its training split.
        skip_empty: passages of a corpus without title and text are left out; else they are errors.
        task: from a `task.yaml` (or .json) in the folder; None without one.
    """

    folder: Path
    kind: Kind
    name: str
    split: str
    files: tuple[Path, ...]
    skip_empty: bool = False
    task: Task | None = None

    def fingerprint(self) -> str:
        """Hex digest of the bytes of all files and of what is done with them."""
        # Names of files repeat across folders, so each is digested alone.
        files = [digest_of_files([path]) for path in self.files]
        return digest_of([self.kind, self.split, self.skip_empty, files])


def find_local(given: str, *, split: str | None = None, skip_empty: bool = False) -> LocalSet:
    """What a folder holds, of which nothing but names and first looks is read.

    Args:
        given: a folder; `KIND:FOLDER` where it could be of several kinds.
        split: which split to evaluate; None takes "test", or the only one there is.
        skip_empty: see `LocalSet`.

    Raises:
        InputError: no such folder, a kind that cannot be told, or a split that is not there.
    """
    kind, path = _parted(given)
    if not path.is_dir():
        raise InputError(f"{path} is no folder; --local wants one with evaluation data")
    folder = path.resolve()
    meta = _meta(folder)
    kind = kind or _kind_of(folder, meta)
    splits = _splits_of(folder, kind)
    chosen = _split_among(folder, kind, splits, split)
    name = meta.get("name", folder.name)
    # Results lie in files of this name.
    if not isinstance(name, str) or not name.strip() or Path(name).name != name:
        raise InputError(
            f"{folder / 'meta.json'}: the name is {name!r}; expected one that a file could have"
        )
    task_file = next((one for one in _task_files(folder) if one.is_file()), None)
    return LocalSet(
        folder,
        kind,
        name,
        chosen,
        splits[chosen],
        skip_empty,
        None if task_file is None else Task.load(task_file),
    )


def _parted(given: str) -> tuple[Kind | None, Path]:
    before, _, after = given.partition(":")
    if after and before in KINDS:
        return before, Path(after).expanduser()
    return None, Path(given).expanduser()


def _task_files(folder: Path) -> list[Path]:
    return [folder / f"task{suffix}" for suffix in SUFFIXES]


def _meta(folder: Path) -> dict[str, object]:
    path = folder / "meta.json"
    document = read_document(path) if path.is_file() else {}
    if not isinstance(document, dict):
        raise InputError(f'{path}: expected an object, such as {{"name": "...", "kind": "sts"}}')
    return document


def _kind_of(folder: Path, meta: dict[str, object]) -> Kind:
    """By `meta.json`, where `A+B` means either; else by the form of the files."""
    said = [kind for kind in KINDS if kind in str(meta.get("kind", "")).split("+")]
    if len(said) == 1:
        return said[0]
    if said:
        choice = " or ".join(f"{kind}:{folder}" for kind in said)
        raise InputError(f"{folder} may be {' or '.join(said)}: say which, as {choice}")
    if file_of(folder, "corpus", ".jsonl"):
        return "retrieval"
    files = split_names(folder)
    if not files:
        raise InputError(
            f"{folder} holds nothing to evaluate: expected corpus.jsonl, queries.jsonl and"
            " judgements, or a file a split, such as test.tsv or test.jsonl; it may be one of"
            f" {', '.join(KINDS)}"
        )
    first = next(iter(files.values()))
    if ".jsonl" in first.name:
        return "reranking"
    form = form_of(first)
    if form == "labelled":
        # Without a training split there is nothing to train a classifier on.
        return "classification" if TRAIN_SPLIT in files else "clustering"
    return "pair_classification" if form == "labelled pairs" else "sts"


def _splits_of(folder: Path, kind: Kind) -> dict[str, tuple[Path, ...]]:
    if kind == "retrieval":
        return _retrieval_splits(folder)
    ending = _ending(kind)
    files = {name: path for name, path in split_names(folder).items() if ending in path.name}
    if kind != "classification":
        return {name: (path,) for name, path in files.items()}
    if TRAIN_SPLIT not in files:
        raise InputError(
            f"{folder}: a classification needs {TRAIN_SPLIT}{ending} to train on; add it"
        )
    return {name: (path, files[TRAIN_SPLIT]) for name, path in files.items() if name != TRAIN_SPLIT}


def _ending(kind: Kind) -> str:
    """Of a split's file, where it is one file."""
    return ".jsonl" if kind == "reranking" else ".tsv"


def _retrieval_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    corpus = file_of(folder, "corpus", ".jsonl")
    if corpus is None:
        raise InputError(f"{folder}: no corpus.jsonl (or .jsonl.gz); a retrieval set needs one")
    judged: dict[str, tuple[Path | None, Path]] = {}
    queries = file_of(folder, "queries", ".jsonl")
    if (folder / "qrels").is_dir():
        judged = {name: (queries, path) for name, path in split_names(folder / "qrels").items()}
    else:
        for name, path in split_names(folder).items():
            if name == "qrels":
                judged[_DEFAULT_SPLIT] = (queries, path)
            elif name.endswith("_qrels"):
                split = name.removesuffix("_qrels")
                judged[split] = (file_of(folder, f"{split}_queries", ".jsonl"), path)
    found: dict[str, tuple[Path, ...]] = {}
    for split, (asked, path) in judged.items():
        if asked is None:
            raise InputError(f"{folder}: no queries.jsonl for the judgements in {path.name}")
        found[split] = (corpus, asked, path)
    return found


def _split_among(
    folder: Path, kind: Kind, splits: dict[str, tuple[Path, ...]], wanted: str | None
) -> str:
    if wanted is None and len(splits) == 1:
        return next(iter(splits))
    chosen = wanted or _DEFAULT_SPLIT
    if chosen not in splits:
        there = f"there are {', '.join(splits)}" if splits else "there is none at all"
        endings = (
            ENDINGS if kind == "retrieval" else [one for one in ENDINGS if _ending(kind) in one]
        )
        raise InputError(
            f"{folder} ({kind}) has no split {chosen!r}: {there}; choose one with --split, or add"
            f" a file ({', '.join(endings)})"
        )
    return chosen
