import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_retrieval import EpicEncoder
from epic_retrieval.checkpoint import model_dimension
from epic_retrieval.cli.app import app
from epic_retrieval.cli.building import chunk_size_of
from epic_retrieval.errors import EpicError

run = CliRunner().invoke


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.csv"
    path.write_text("id,text,year\n1,Water runs downhill.,1999\n2,,2001\n")
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "99"], "--dim is 99: expected 1 to 32, which is what the model gives"),
        (["--kind", "nonsense"], "nonsense"),
        (["--types", "yaer=int"], 'the column "yaer", which is not there'),
        (["--model", "./absent"], "no model at './absent'"),
        (["--device", "foo"], "--device foo is no device that torch knows"),
    ],
)
def test_faults_are_found_before_the_weights_are_read(
    corpus: Path,
    tiny_encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    from epic_retrieval import checkpoint
    from epic_retrieval.cli.wording import as_options

    loads: list[object] = []
    monkeypatch.setattr(checkpoint, "_load_model", lambda *given: loads.append(given))
    out = ["--out", str(tmp_path / "out"), "--model", str(tiny_encoder_folder), *options]
    commands = [["index", "build"]] if "--kind" in options else [["index", "build"], ["encode"]]
    for command in commands:
        done = run(app, [*command, str(corpus), *out])
        assert isinstance(done.exception, EpicError), done.output
        assert message in as_options(str(done.exception))
    assert loads == []


def test_an_index_is_no_corpus_and_a_file_no_index(
    corpus: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    out, model = str(tmp_path / "out"), ["--model", str(tiny_encoder_folder)]
    built = run(app, ["index", "build", str(corpus), "--out", out, "--skip-empty", *model])
    assert built.exit_code == 0, built.output
    # The blank row was counted before.
    assert "100%" in built.stderr
    assert "1/1" in built.stderr
    assert "1 vector of 32 dimensions" in built.stderr
    for command in (["index", "build"], ["encode"]):
        done = run(app, [*command, out, "--out", f"{out}2", *model])
        assert f"{out} is an index, not a corpus" in str(done.exception)
    done = run(app, ["index", "search", str(corpus), "x"])
    assert "corpus.csv is a file, and no index" in str(done.exception)


def test_passages_at_a_time(tiny_encoder_folder: Path) -> None:
    encoder = EpicEncoder.from_pretrained(tiny_encoder_folder, device="cpu")
    assert chunk_size_of(encoder) == 256
    encoder.checkpoint.backbone.model.config.hidden_size = 4096
    assert chunk_size_of(encoder) == 16


def test_the_width_of_a_model_is_known_without_its_weights(
    tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    assert model_dimension() == 384
    assert model_dimension(tiny_encoder_folder) == 32
    settings = json.loads((tiny_encoder_folder / "config.json").read_text())
    del settings["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert model_dimension(tmp_path) is None
