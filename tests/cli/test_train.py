"""`epic train`: what it prints, and how it fails."""

import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from epic_retrieval import EpicEncoder
from epic_retrieval.cli import main
from epic_retrieval.cli.app import app
from epic_retrieval.errors import EpicError
from tests.training.runs import write_mix, write_toy_run


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a toy run."""
    monkeypatch.setattr("epic_training.curves.draw_curves", lambda _records, _path: None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy")).parent


def epic(*arguments: str | Path) -> str:
    """What the command prints; its errors are raised, as `main` catches them."""
    done = CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_files_and_settings_merge_and_the_result_is_named(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("optimizer: {steps: 3}\nregime: text\n")
    said = epic(
        *(toy / "config.yaml", tmp_path / "more.yaml"),
        *("--out", tmp_path / "out", "--set", "optimizer.steps=2", "--set", "run.seed=7"),
        *("--mix", toy / "both.yaml", "--data", toy / "data"),
    )
    folder = tmp_path / "out" / "best"
    assert said == f"trained {folder}\n"
    training = EpicEncoder.from_pretrained(folder).checkpoint.config.training
    assert (training["optimizer"]["steps"], training["optimizer"]["warmup"]) == (2, 1)
    assert (training["regime"], training["run"]["seed"]) == ("text", 7)
    assert (training["mix"], training["data"]) == (str(toy / "both.yaml"), str(toy / "data"))


def test_a_dry_run_shows_every_data_set_and_trains_nothing(toy: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    said = epic(toy / "config.yaml", "--mix", toy / "both.yaml", "--dry-run")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    total = 0
    words = {"animals": ["query", "positive", "negative"], "twins": ["query", "positive"]}
    for name, texts in words.items():
        counts, *tokens = [line.split() for line in said.splitlines() if f" {name} " in line]
        numbers = [int(word) for word in counts if word.isdigit()]
        kept, held_out, _, _, size, batches = numbers
        assert (kept + held_out, size, batches) == (300, 8, kept // 8)
        assert held_out > 0
        total += batches
        assert [line[3] for line in tokens] == texts
    assert said.startswith(f"{total} batches per epoch")
    for word in ("mean", "median", "longest", "cut"):
        assert word in said
    asked = "Instruct: Given a question, find the passage that answers it\nQuery: where does the"
    assert f"animals, query:\n{asked}" in said
    assert "animals, positive:\nThe " in said
    assert "animals, negative:\nThe " in said
    twin = "Instruct: Find the sentence that says the same\nQuery: "
    assert f"twins, query:\n{twin}The " in said
    assert f"twins, positive:\n{twin}Near " in said, "symmetric"
    assert "twins, negative:\nnone" in said
    assert said.count("<eos>") == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no folder to write to; name one with --out, or look first with --dry-run"),
        (
            ["--out", "OUT", "--set", "optimizer.step=2"],
            "optimizer.step: unknown key; expected betas",
        ),
        (["--out", "OUT", "--set", "steps"], "'steps' sets nothing; expected key=value"),
        (["--out", "OUT", "--mix", "absent.yaml"], "absent.yaml"),
        (["--out", "OUT", "--mix", "MIX"], "ratio is 0; remove the dataset instead"),
        (["--out", "OUT", "--set", "base=absent"], "no model at 'absent'; expected an existing"),
        (["--dry-run", "--set", "base=absent"], "no model at 'absent'; expected an existing"),
        (["--dry-run", "--mix", "MIX"], "ratio is 0; remove the dataset instead"),
        (["--out", "OUT", "--set", "lora={"], "the value is not YAML"),
        (["--out", "OUT", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], said: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mix = write_mix(toy / "zero.yaml", {"animals": {"instruction": "Find", "ratio": 0}})
    names = {"OUT": str(tmp_path / "out"), "MIX": str(mix)}
    with pytest.raises(EpicError) as caught:
        epic(toy / "config.yaml", *[names.get(part, part) for part in arguments])
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_errors_of_the_process(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message on stderr and exit code 1."""
    monkeypatch.setattr(sys, "argv", ["epic", "train", str(toy / "config.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("epic: no folder to write to; name one with --out")
    assert said.err.count("\n") == 1


def test_the_same_folder_with_other_settings(toy: Path, tmp_path: Path) -> None:
    arguments = (toy / "config.yaml", "--out", tmp_path, "--set", "optimizer.steps=1")
    epic(*arguments)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optimizer"]["steps"] == 1
    with pytest.raises(EpicError, match=r"run\.seed: 42 is now 1\); take another folder"):
        epic(*arguments, "--set", "run.seed=1")
    epic(*arguments, "--set", "run.log_every=5", "--set", "batches.workers=1")
