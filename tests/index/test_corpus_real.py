import json
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import read_corpus


@pytest.mark.parametrize("name", ["scifact", "cranfield", "cosqa"])
def test_real_corpora(data_root: Path, name: str) -> None:
    folder = data_root / "retrieval" / name
    meta = json.loads((folder / "meta.json").read_text())
    found = list(read_corpus(folder, skip_empty=True))
    assert len(found) == meta["docs"] - meta["empty_docs"]
    judged = {line.split("\t")[1] for line in (folder / "qrels.tsv").read_text().splitlines()[1:]}
    assert len(judged & {passage.id for passage in found}) > 0.99 * len(judged)


def test_cranfield_holds_blank_passages(data_root: Path) -> None:
    with pytest.raises(InputError, match=r"line \d+: Passage .* skip_empty=True"):
        list(read_corpus(data_root / "retrieval" / "cranfield"))
