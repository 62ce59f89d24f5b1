"""`epic eval` and `epic eval table`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from epic_retrieval import InputError, Task
from epic_retrieval.cli.app import app
from tests.evaluation import sets


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tiny_encoder_folder: Path) -> list[object]:
    return ["--model", tiny_encoder_folder, "--device", "cpu"]


def test_modes_and_rivals_in_one_table(model: list[object], tmp_path: Path) -> None:
    task = Task("set", "Find what answers", sets.SHOWN)
    ranked = sets.with_task(sets.retrieval(tmp_path / "ranked"), task)
    pairs = sets.with_task(sets.sts(tmp_path / "sts"), task)
    out = tmp_path / "out"
    options = ["--local", ranked, "--local", pairs, *model, "--model", "bm25", "--out", out]
    done = run(*options, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["systems"]) == ["tiny-epic, none", "tiny-epic, epic", "BM25"]
    assert found["systems"]["tiny-epic, epic"]["demonstrations"].keys() == {"ranked", "sts"}
    scores = found["tasks"]["ranked"]["scores"]
    assert scores["tiny-epic, none"] != scores["tiny-epic, epic"]
    assert "tiny-epic, epic on sts" in done.stderr, "a progress bar"

    shown = run("table", out, "--format", "json", "--out", tmp_path / "table.json")
    assert shown.exit_code == 0, shown.output
    kept = json.loads((tmp_path / "table.json").read_text())
    assert kept["tasks"] == found["tasks"]
    header = run("table", out, "--per-task").stdout.splitlines()[0]
    assert header.split(None, 2)[2].split("  ") == ["BM25", "tiny-epic, epic", "tiny-epic, none"]


def test_demonstrations_bring_the_mode_that_reads_them(model: list[object], tmp_path: Path) -> None:
    folder = sets.sts(tmp_path / "sts")
    (tmp_path / "shown").mkdir()
    pairs = [{"query": one.query, "response": one.passage} for one in sets.SHOWN]
    (tmp_path / "shown" / "sts.json").write_text(json.dumps(pairs))
    options = ["--local", folder, *model, "--out", tmp_path / "out", "--format", "json"]
    done = run(*options, "--demonstrations", tmp_path / "shown")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["systems"]) == ["tiny-epic, none", "tiny-epic, epic"]
    done = run(*options, "--demonstrations", "none")
    assert list(json.loads(done.stdout)["systems"]) == ["tiny-epic, none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to evaluate on: give --tasks, --benchmark or --local"),
        (["--tasks", "SciFact"], "give --out a folder"),
        (["--tasks", "SciFacts", "--out", "x"], "no English task 'SciFacts'"),
        (["--tasks", "SciFact", "--split", "dev", "--out", "x"], "no split 'dev'"),
        (["--tasks", "SciFact", "--out", "x", "--mode", "best"], "unknown mode 'best'"),
        (["--tasks", "SciFact", "--out", "x", "--format", "xml"], "--format is 'xml'"),
        (["--local", "absent", "--out", "x"], "absent is no folder"),
        (["--tasks", "SciFact", "--out", "x", "--demonstrations", "absent"], "demonstrations"),
        (["--tasks", "SciFact", "--out", "x", "--mode", "epic"], "these tasks have none: SciFact"),
        (["table", "absent"], "absent holds no records"),
    ],
)
def test_what_is_wrong_is_said_first(
    options: list[str],
    message: str,
    model: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*options, *([] if options[:1] == ["table"] else model))
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert not list(tmp_path.iterdir())
