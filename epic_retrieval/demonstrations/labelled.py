"""Labelled queries from files: pairs in JSON Lines, or a retrieval folder with judgements.

Knows nothing of models; what is a good demonstration is decided elsewhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from epic_retrieval.errors import InputError
from epic_retrieval.index import read_corpus
from epic_retrieval.index._tables import jsonl_cells, text_lines

_LONGEST_LINE = 2**26  # bytes
_QUERY = ("query", "question")
_POSITIVE = ("positive", "passage", "pos", "positives", "response")
_NEGATIVE = ("negative", "neg", "negatives")
_FORMS = (
    'expected JSON Lines with "query" and "positive" (or "passage"), or a folder with corpus.jsonl,'
    " queries and qrels"
)


@dataclass(frozen=True)
class Labelled:
    """Queries, each once, and the passages that answer them.

    Attributes:
        queries: texts.
        relevant: per query, the grade, above 0, of each passage that answers it, by its id.
        passages: texts by id: those that answer a query and all others there are to be found.
    """

    queries: tuple[str, ...]
    relevant: tuple[Mapping[str, int], ...]
    passages: Mapping[str, str]


def read_labelled(path: str | Path, split: str | None = None) -> Labelled:
    """Read labelled queries.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file of pairs: "query", and "positive" or "passage" (one
            text or a list), perhaps "negative" too, which are then passages to be found as well.
            Or a folder with `corpus.jsonl` and judgements, see `split`.
        split: for a folder: `<split>_queries.jsonl` with `<split>_qrels.tsv`, or BEIR's
            `queries.jsonl` with `qrels/<split>.tsv`; "test" is `queries.jsonl` with `qrels.tsv`
            too. None takes train, else dev, and never test.

    Raises:
        InputError: naming the file and the line, for whatever cannot be used.
    """
    found = Path(path)
    if found.is_dir():
        return _from_folder(found, split)
    if split is not None:
        raise InputError(f"{found} is no folder, so it has no split {split!r}; leave the split out")
    if not found.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{found}: {_FORMS}")
    return _from_pairs(found)


def _from_pairs(path: Path) -> Labelled:
    numbers: dict[str, str] = {}  # text of a passage to its id
    relevant: dict[str, dict[str, int]] = {}
    for line, cells in jsonl_cells(path, _LONGEST_LINE):
        where = f"{path}, line {line}"
        asked = _texts(cells, _QUERY, where)
        positives = _texts(cells, _POSITIVE, where)
        if len(asked) != 1 or not asked[0].strip() or not any(map(str.strip, positives)):
            raise InputError(f'{where}: without a text as "query" or as "positive"; {_FORMS}')
        answers = relevant.setdefault(asked[0], {})
        for text in filter(str.strip, positives):
            answers[numbers.setdefault(text, str(len(numbers)))] = 1
        for text in filter(str.strip, _texts(cells, _NEGATIVE, where)):
            numbers.setdefault(text, str(len(numbers)))
    if not relevant:
        raise InputError(f"{path} holds no pairs; {_FORMS}")
    passages = {number: text for text, number in numbers.items()}
    return Labelled(tuple(relevant), tuple(relevant.values()), passages)


def _texts(cells: Mapping[str, object], names: tuple[str, ...], where: str) -> list[str]:
    """The texts under the first of these names that a row has."""
    for name in names:
        value = cells.get(name)
        if value is None:
            continue
        given = value if isinstance(value, list) else [value]
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            raise InputError(f"{where}: {name!r} is {value!r}; expected a text or a list of texts")
        return texts
    return []


def _from_folder(folder: Path, split: str | None) -> Labelled:
    queries_file, qrels_file = _judged_files(folder, split)
    texts = dict(_query_rows(queries_file))
    passages = {one.id: one.content for one in read_corpus(folder, skip_empty=True)}
    relevant: dict[str, dict[str, int]] = {}
    for line, (query, passage, grade) in _judgements(qrels_file):
        where = f"{qrels_file}, line {line}"
        if grade <= 0 or passage not in passages:  # a blank passage, left out above
            continue
        if query not in texts:
            raise InputError(f"{where}: there is no query {query!r} in {queries_file}")
        relevant.setdefault(texts[query], {})[passage] = grade
    if not relevant:
        raise InputError(f"{qrels_file} judges no passage of the corpus relevant; check its ids")
    return Labelled(tuple(relevant), tuple(relevant.values()), passages)


def _judged_files(folder: Path, split: str | None) -> tuple[Path, Path]:
    """Queries and judgements of a split."""
    for name in (split,) if split else ("train", "dev"):
        places = [(f"{name}_queries.jsonl", f"{name}_qrels.tsv")]
        places += [("queries.jsonl", f"qrels/{name}.tsv")]
        places += [("queries.jsonl", "qrels.tsv")] if name == "test" else []
        for queries, qrels in places:
            for ending in ("", ".gz"):
                if (folder / qrels).is_file() and (folder / f"{queries}{ending}").is_file():
                    return folder / f"{queries}{ending}", folder / qrels
    if split:
        raise InputError(
            f"{folder} has no split {split!r}; expected {split}_queries.jsonl with"
            f" {split}_qrels.tsv, or queries.jsonl with qrels/{split}.tsv"
        )
    raise InputError(
        f"{folder} has neither a train nor a dev split (train_queries.jsonl with train_qrels.tsv,"
        " or queries.jsonl with qrels/train.tsv); to use its test queries all the"
        ' same, name the split "test", and report no scores on them'
    )


def _query_rows(path: Path) -> Iterator[tuple[str, str]]:
    for line, cells in jsonl_cells(path, _LONGEST_LINE):
        number, text = cells.get("_id", cells.get("id")), cells.get("text")
        if number is None or not isinstance(text, str) or not text.strip():
            raise InputError(f'{path}, line {line}: expected "_id" and a "text" that is not blank')
        yield str(number), text


def _judgements(path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """(line, (query, passage, grade)) of BEIR's three columns or TREC's four."""
    for line, text in text_lines(path, _LONGEST_LINE):
        cells = text.rstrip("\r\n").split("\t")
        if not text.strip() or (line == 1 and not cells[-1].lstrip("-").isdigit()):
            continue  # the header
        if len(cells) not in {3, 4} or not cells[-1].lstrip("-").isdigit():
            raise InputError(
                f"{path}, line {line}: {text.rstrip()!r}; expected query, passage and grade,"
                " separated by tabs"
            )
        yield line, (cells[0], cells[-2], int(cells[-1]))
