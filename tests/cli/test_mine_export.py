import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from epic_retrieval import EpicEncoder, Task
from epic_retrieval.cli.export import export
from epic_retrieval.cli.mine import mine
from epic_retrieval.errors import EpicError, InputError
from epic_training.data.formats import guess_format, read_rows
from epic_training.mining import MiningSettings, mine_negatives
from epic_training.mining_encoder import EncoderSource

app = typer.Typer()
app.command()(mine)
app.command()(export)
run = CliRunner().invoke

PAIRS = [
    {"query": f"what does number {n} do", "pos": [f"Number {n} counts {n} things."]}
    for n in range(12)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": "Find it"}) + "\n" for row in PAIRS))
    return path


@pytest.fixture(scope="module")
def model(tiny_encoder_folder: Path) -> list[str]:
    return ["--model", str(tiny_encoder_folder), "--device", "cpu"]


def test_mine_agrees_with_the_library(
    pairs: Path, model: list[str], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    options = ["--negatives", "3", "--rank-max", "9", "--relative-margin", "0.99", "--scores"]
    options += ["--instruction", "Retrieve what answers", "--mode", "none"]
    done = run(app, ["mine", str(pairs), "--out", str(out), *options, *model])
    assert done.exit_code == 0, done.output
    source = EncoderSource(
        EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu"),
        Task("t", "Retrieve what answers"),
        "none",
    )
    settings = MiningSettings(negatives=3, rank_max=9, relative_margin=0.99, scores=True)
    report = mine_negatives(pairs, tmp_path / "library.jsonl", source, settings)
    assert out.read_text() == (tmp_path / "library.jsonl").read_text()
    assert done.stdout.startswith(f"{report.mined} negatives for 12 rows in {out}\n")
    assert "12 candidates; left out as answers" in done.stdout
    assert "queries" in done.stderr, "a progress bar"


def test_mine_with_bm25_and_a_corpus(pairs: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = [f"Number {n} counts, says passage {n}." for n in range(20, 50)]
    corpus.write_text(
        "".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    )
    out = tmp_path / "out.jsonl.gz"
    command = ["mine", str(pairs), "--out", str(out), "--source", "bm25", "--corpus", str(corpus)]
    done = run(app, [*command, "--relative-margin", "0", "--pick", "random"])
    assert done.exit_code == 0, done.output
    for row in read_rows(out, guess_format(out)):
        assert len(row.negatives) == 7
        assert set(row.negatives) <= set(texts)
    assert "12 passages of the data are not in the corpus" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "bm26"], "expected encoder or bm25"),
        (["--task", "web-search", "--instruction", "x"], "expected one of them"),
        (["--symmetric"], "goes with --instruction"),
        (["--task", "web-serch"], "did you mean 'web-search'"),
        (["--source", "bm25", "--mode", "none"], "--mode is for encoders"),
        (["--rank-min", "9", "--rank-max", "8"], "hold no passage"),
        (["--mode", "all"], "unknown mode"),
    ],
)
def test_mine_refuses_before_a_model_loads(
    pairs: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = ["mine", str(pairs), "--out", str(tmp_path / "out.jsonl"), "--model", "no/such"]
    done = run(app, [*command, *options])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_mine_takes_the_rows_own_instructions(
    pairs: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    done = run(app, ["mine", str(pairs), "--out", str(out), *model])
    assert done.exit_code == 0, done.output
    assert [row.instruction for row in read_rows(out, "flagembedding")] == ["Find it"] * 12
    pairs.write_text(json.dumps(PAIRS[0]) + "\n")
    done = run(app, ["mine", str(pairs), "--out", str(tmp_path / "o.jsonl"), *model])
    assert "row 1: the row has no instruction" in str(done.exception)


def test_export_writes_a_folder(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(app, ["export", str(tiny_encoder_folder), "--out", str(out), "--license", "mit"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tiny_encoder_folder} in {out}\n"
    assert (out / "README.md").read_text().startswith("---\nlicense: mit\n")
    ours, theirs = (EpicEncoder.from_pretrained(f) for f in (tiny_encoder_folder, out))
    np.testing.assert_array_equal(ours.encode_passages(["a"]), theirs.encode_passages(["a"]))
    done = run(app, ["export", str(tiny_encoder_folder), "--out", str(out)])
    assert isinstance(done.exception, InputError)


def test_export_of_the_bundled_model_for_sentence_transformers(tmp_path: Path) -> None:
    out = tmp_path / "st"
    options = ["--layout", "sentence-transformers", "--instruction", "Find it", "--symmetric"]
    done = run(app, ["export", "epic-mini", "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    prompts = json.loads((out / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == dict.fromkeys(("query", "document"), "Instruct: Find it\nQuery: ")


def test_export_asks_for_something_to_do(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    done = run(app, ["export", str(tiny_encoder_folder)])
    assert "nothing to do" in str(done.exception)
    done = run(app, ["export", str(tiny_encoder_folder), "--push", "a/b", "--dtype", "float16"])
    assert "a folder is uploaded as it is" in str(done.exception)
    out = tmp_path / "out"
    done = run(app, ["export", str(tiny_encoder_folder), "--out", str(out), "--public"])
    assert "go with --push" in str(done.exception)
    done = run(app, ["export", str(tiny_encoder_folder), "--out", str(out), "--push", "model"])
    assert 'expected "owner/name"' in str(done.exception)
    assert not out.exists(), "found out before anything is written"


def test_a_push_that_fails_keeps_the_export(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # The real client, which is offline in tests.
    done = run(app, ["export", str(tiny_encoder_folder), "--out", str(out), "--push", "me/m"])
    assert isinstance(done.exception, EpicError)
    assert f"try again later with: epic export {out} --push me/m" in str(done.exception)
    assert (out / "epic_config.json").is_file()
    # And that command goes as far.
    again = run(app, ["export", str(out), "--push", "me/m"])
    assert "HF_HUB_OFFLINE is set" in str(again.exception)
    done = run(app, ["export", str(tmp_path / "no"), "--push", "me/m"])
    assert "holds no model" in str(done.exception)
