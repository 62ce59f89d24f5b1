"""`epic bench` from end to end, on a random model of a few thousand weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from epic_retrieval.benchmarking.conditions import PARTS
from epic_retrieval.cli.app import app

CONDITIONS = {
    "k": [0, 2],
    "batches": [1, 3],
    "queries": 3,
    "rounds": 1,
    "slow_rounds": 1,
    "requests": 5,
    "rates": [2.0],
    "single": 1,
    "rivals": ["epic-shared", "text-shared", "text-rerun"],
    "answering": {"first_ms": 1, "ms_per_token": 0},
    "scaling": {
        "demonstrations": [0, 2],
        "demonstration_tokens": [20],
        "query_tokens": [4],
        "corpus": [60],
        "batch": [1, 2],
    },
}


def invoke(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    rows = [{"_id": str(n), "title": f"t{n}", "text": f"passage {n} says " * 3} for n in range(30)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "conditions.yaml").write_text(yaml.safe_dump(CONDITIONS))
    return folder


def options(setting: Path) -> list[str | Path]:
    files: list[str | Path] = [
        "--conditions",
        setting / "conditions.yaml",
        "--corpus",
        setting / "corpus.jsonl",
    ]
    return [*files, "--model", "random:tiny", "--task", "web-search"]


@pytest.fixture(scope="module")
def record(setting: Path) -> dict[str, Any]:
    said = invoke("rag", *options(setting), "--out", setting / "run.json")
    assert "Single requests, from the question to the first answer" in said
    found: dict[str, Any] = json.loads((setting / "run.json").read_text())
    return found


def test_every_part_leaves_series(record: dict[str, Any]) -> None:
    parts = {name.partition("/")[0] for name in record["series"]}
    assert parts == {*PARTS, "yardstick"}
    assert list(record["facts"]["seconds"]) == list(PARTS)
    assert record["left_out"] == {}
    assert record["facts"]["index"] == {"passages": 30, "kind": "Flat"}
    assert record["conditions"]["k"] == [0, 2]
    assert all(one["agree"] for one in record["agreement"])


def test_numbers_of_values_follow_the_conditions(record: dict[str, Any]) -> None:
    series = record["series"]
    assert len(series["stages/web-search epic k=2/total"]["values"]) == 3
    assert len(series["arrivals/shared passes load=2/latency"]["values"]) == 5
    assert len(series["rivals/batch/wall/text-rerun"]["values"]) == 1
    assert "scaling/demonstrations/text, prompt run again x=2" in series
    assert "scaling/corpus/auto x=60" in series


def test_no_path_is_in_a_record(setting: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record)
    assert str(setting.parent) not in text
    assert str(Path.home()) not in text


def test_a_report_of_the_run(setting: Path, record: dict[str, Any]) -> None:
    out = setting / "report.html"
    said = invoke("report", setting / "run.json", "--out", out)
    assert said.strip() == str(out)
    assert out.read_text().count("<svg") == 11
    assert record["environment"]["cpu"] in out.read_text()


def test_a_run_compared_with_itself(setting: Path, record: dict[str, Any]) -> None:
    assert record
    said = invoke("compare", setting / "run.json", setting / "run.json")
    assert ", 0 changed beyond noise" in said
    assert "Not the same" not in said


def test_mistakes_are_found_before_anything_runs(setting: Path) -> None:
    with pytest.raises(ValueError, match="'slow' is unknown"):
        invoke("rag", *options(setting), "--only", "slow")
    with pytest.raises(ValueError, match=r"ends in \.json"):
        invoke("rag", *options(setting), "--out", setting / "run.txt")
    with pytest.raises(ValueError, match="folder that exists"):
        invoke("rag", *options(setting), "--out", setting / "absent" / "run.json")
    with pytest.raises(ValueError, match="unknown shape"):
        invoke("rag", *options(setting), "--model", "random:none")
    (setting / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="no queries"):
        invoke("rag", *options(setting), "--queries", setting / "empty.txt")


def test_an_index_and_queries_of_ones_own(setting: Path, tiny_encoder_folder: Path) -> None:
    index = setting / "index"
    command = ["index", "build", setting / "corpus.jsonl", "--out", index]
    command += ["--model", tiny_encoder_folder]
    assert CliRunner().invoke(app, [str(one) for one in command]).exit_code == 0
    (setting / "queries.txt").write_text("what does it say?\nand that?\n")
    said = invoke(
        *("rag", "--conditions", setting / "conditions.yaml", "--corpus", index),
        *("--queries", setting / "queries.txt", "--only", "stages"),
        *("--model", tiny_encoder_folder, "--task", "web-search"),
    )
    assert "web-search, demonstrations as vectors (EPIC), k = 2" in said
