import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_retrieval.cli.analyze import read_queries
from epic_retrieval.cli.app import app
from epic_retrieval.errors import EpicError, InputError

run = CliRunner().invoke


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text("what is it\n\nwho wrote it down\n")
    return path


def test_prompts_as_a_table_and_as_json(queries: Path) -> None:
    named = ["analyze", "prompt", "web-search", "python-docs", "--shape", "mistral-7b"]
    table = run(app, named).stdout.splitlines()
    assert [line.split()[0] for line in table[:4]] == ["TASK", "web-search", "python-docs", "mean"]
    found = json.loads(run(app, [*named, "--json", "--queries", str(queries)]).stdout)
    first = found[0]
    assert table[1].split()[1:5] == [
        str(first["demonstrations"]),
        *(str(first["positions"][mode]) for mode in ("none", "text", "epic")),
    ]
    for mode, count in first["positions"].items():
        assert first["bytes"][mode] == count * 131_072
    assert 4 <= first["query_tokens"] <= 8


def test_prompts_of_others(data_root: Path) -> None:
    folder = data_root / "bge-en-icl-demonstrations"
    found = json.loads(run(app, ["analyze", "prompt", str(folder), "--json"]).stdout)
    assert len(found) == 56
    assert sum(one["demonstrations"] for one in found) == 231
    assert all(one["positions"]["epic"] < one["positions"]["text"] for one in found)


def test_attention(queries: Path, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "shares.json", tmp_path / "shares.png"
    named = ["analyze", "attention", "web-search", "--queries", str(queries), "--device", "cpu"]
    named += ["--model", str(tiny_encoder_folder), "--mode", "none", "--mode", "epic"]
    done = run(app, [*named, "--out", str(out), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert record["model"] == tiny_encoder_folder.name
    assert list(record["modes"]) == ["none", "epic"]
    for one in record["modes"].values():
        assert len(one["layers"]) == 3
        for layer in one["layers"]:
            assert sum(layer.values()) == pytest.approx(1, abs=1e-4)
    assert plot.read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("epic")] == [
        ["epic", "1"],
        ["epic", "2"],
        ["epic", "3"],
        ["epic", "mean"],
        ["epic", "tokens"],
    ]
    assert json.loads(run(app, [*named, "--json"]).stdout) == record


def test_modes_are_those_that_are_possible(queries: Path) -> None:
    named = ["analyze", "attention", "SciFact", "--queries", str(queries), "--json"]
    assert list(json.loads(run(app, named).stdout)["modes"]) == ["none"]
    named[2] = "web-search"
    found = json.loads(run(app, [*named, "--count", "1"]).stdout)
    assert list(found["modes"]) == ["none", "text", "epic"]
    assert found["queries"] == 1


def test_what_cannot_be_used(queries: Path, tmp_path: Path) -> None:
    wrong = ["analyze", "prompt", "web-search", "--dtype", "int3"]
    assert isinstance(run(app, wrong).exception, InputError)
    plot = ["analyze", "attention", "web-search", "--queries", str(queries), "--plot", "x.gif"]
    assert isinstance(run(app, plot).exception, EpicError)
    lines = tmp_path / "q.jsonl"
    lines.write_text('{"_id": "1", "text": "a"}\n{"query": "b"}\n{"text": " "}\n')
    assert read_queries(lines, 2) == ["a", "b"]
    with pytest.raises(InputError, match="line 3: expected a text"):
        read_queries(lines)
    lines.write_text("\n")
    with pytest.raises(InputError, match="holds no queries"):
        read_queries(lines)
    with pytest.raises(InputError, match=r"expected \.txt, or \.jsonl"):
        read_queries(tmp_path / "q.csv")
