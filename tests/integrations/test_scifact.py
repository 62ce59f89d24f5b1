"""A part of SciFact scores the same through every framework as on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import frameworks
from benchmarks.frameworks import WAYS, measure, read_jsonl, read_qrels
from epic_retrieval.cli.app import app

QUERIES, OTHERS = 24, 72


@pytest.fixture(scope="module")
def part(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first queries, what is relevant to them, and passages that are relevant to none."""
    whole, folder = data_root / "retrieval" / "scifact", tmp_path_factory.mktemp("scifact")
    qrels = read_qrels(whole / "qrels.tsv")
    queries = list(dict.fromkeys(qrel.query_id for qrel in qrels))[:QUERIES]
    kept = [qrel for qrel in qrels if qrel.query_id in queries]
    relevant, everything = {qrel.doc_id for qrel in kept}, {qrel.doc_id for qrel in qrels}
    rows = read_jsonl(whole / "corpus.jsonl")
    others = [row for row in rows if row["_id"] not in everything][:OTHERS]
    corpus = [row for row in rows if row["_id"] in relevant] + others
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    texts = read_jsonl(whole / "queries.jsonl")
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    lines = [f"{one.query_id}\t{one.doc_id}\t{one.relevance}\n" for one in kept]
    (folder / "qrels.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *lines]))
    return folder


def command_line(*arguments: str, queries: list[str] | None = None) -> str:
    """The command in this process, where the model is loaded once for all."""
    done = CliRunner().invoke(app, arguments, input=None if queries is None else "\n".join(queries))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_framework_scores_as_the_command_line_does(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frameworks, "command_line", command_line)
    # The others are covered by the record of the whole, benchmarks/results/frameworks.json.
    ours = {name: WAYS[name] for name in WAYS if name.startswith(("LangChain", "LlamaIndex"))}
    scores = dict(measure(part, ours))
    expected = scores.pop("epic index search")
    assert len(scores) == 4
    assert 0.1 < expected < 1
    assert scores == pytest.approx(dict.fromkeys(scores, expected), abs=1e-9)
