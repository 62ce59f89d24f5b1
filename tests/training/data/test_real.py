"""Real data sets in place, whole: every format that the folder of real data holds."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from epic_retrieval.index.corpus import read_corpus
from epic_retrieval.prompt import TEMPLATES
from epic_retrieval.tokenization import TextTokenizer, find_bos_eos
from epic_training.data.formats import guess_format, read_rows
from epic_training.data.mix import load_mix, open_mix
from epic_training.data.plan import BatchPlan
from epic_training.data.report import describe_mix, render
from epic_training.data.rows import TrainingRow
from epic_training.data.store import open_rows
from tests.vocabularies import vocabulary

SAMPLE = "train_research/flagembedding_format_sample"


def flagembedding_files(data_root: Path) -> list[Path]:
    return sorted((data_root / SAMPLE).glob("*.jsonl*"))


def test_gsm8k_line_by_line(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "train_clean" / "gsm8k"
    store = open_rows(folder, guess_format(folder), tmp_path)
    with gzip.open(folder / "pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        given = [json.loads(line) for line in lines]
    assert len(store) == len(given) == 7473
    for number, row in enumerate(given):
        assert store[number] == TrainingRow(row["query"], (row["positive"],))


def test_every_file_of_the_flagembedding_sample(data_root: Path, tmp_path: Path) -> None:
    files = flagembedding_files(data_root)
    assert len(files) == 8
    for path in files:
        assert guess_format(path) == "flagembedding"
        store = open_rows(path, "flagembedding", tmp_path)
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()
        given = [json.loads(line) for line in lines]
        assert [store[n] for n in range(len(store))] == [
            TrainingRow(
                row["query"],
                tuple(row["pos"]),
                tuple(row["neg"]),
                tuple(row.get("pos_scores", ())),
                tuple(row.get("neg_scores", ())),
                row["prompt"],
                row["type"],
            )
            for row in given
        ]
        assert (store.constant("instruction"), store.constant("kind")) == (
            given[0]["prompt"],
            given[0]["type"],
        )


def test_the_training_split_of_scifact(data_root: Path) -> None:
    folder = data_root / "retrieval" / "scifact"
    rows = list(read_rows(folder, guess_format(folder)))
    contents = {one.id: one.content for one in read_corpus(folder)}
    with (folder / "train_queries.jsonl").open(encoding="utf-8") as lines:
        queries = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    judged: dict[str, list[str]] = {}
    with (folder / "train_qrels.tsv").open(encoding="utf-8") as lines:
        for line in list(lines)[1:]:
            query, passage, score = line.split("\t")
            assert int(score) > 0
            judged.setdefault(query, []).append(contents[passage])
    assert len(rows) == 809
    assert rows == [TrainingRow(queries[asked], tuple(found)) for asked, found in judged.items()]


def test_a_mix_of_all_of_them(data_root: Path, tmp_path: Path) -> None:
    entries: dict[str, dict[str, object]] = {
        path.name.split(".")[0]: {"path": f"{SAMPLE}/{path.name}"}
        for path in flagembedding_files(data_root)
    }
    entries["gsm8k"] = {"path": "train_clean/gsm8k", "instruction": "solve", "ratio": 0.25}
    entries["scifact"] = {"path": "retrieval/scifact", "instruction": "verify"}
    mix_file = tmp_path / "mix.yaml"
    mix_file.write_text(yaml.safe_dump({"development_percent": 1.0, "datasets": entries}))
    sets = open_mix(load_mix(mix_file, data_root), tmp_path / "cache")
    kinds = {one.name: (one.tasks[0].symmetric, one.in_batch_negatives) for one in sets}
    assert kinds["classification-no_in_batch_neg__Banking77Classification"] == (False, False)
    assert kinds["clustering-no_in_batch_neg__arXiv_title"] == (True, False)
    assert kinds["sts__sts"] == (True, True)
    assert kinds["retrieval__msmarco"] == kinds["gsm8k"] == (False, True)
    plan = BatchPlan(sets, 64, 7, seed=42)
    names = []
    for step in range(plan.batches_per_epoch):
        batch = plan(step)
        names.append(batch.name)
        assert len(batch.negatives) <= 7 * len(batch.queries)
        assert (batch.scores is not None) == batch.name.startswith("retrieval__")
    assert set(names) == set(entries)
    hf = vocabulary(data_root / "tokenizers", "qwen2")
    bos, eos = find_bos_eos(hf)
    tokenizer = TextTokenizer(hf, bos_id=bos, eos_id=eos)
    report = describe_mix(sets, plan, tokenizer, TEMPLATES["epic"], max_length=512, sample=64)
    assert report.batches_per_epoch == sum(one.batches for one in report.datasets)
    nq = next(one for one in report.datasets if one.name == "retrieval__nq")
    assert nq.negatives == pytest.approx(97.9, abs=1)
    assert nq.example_query.startswith("Instruct: Given a question, retrieve Wikipedia passages")
    text = render(report)
    assert all(name in text for name in entries)
