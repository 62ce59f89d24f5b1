"""The command as a process: exit codes, streams, and how little `--help` loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_retrieval.cli.app import app


def epic(*arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = (sys.executable, "-c", "from epic_retrieval.cli import main; main()", *arguments)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_an_error_is_one_message_and_no_traceback(tmp_path: Path) -> None:
    done = epic("index", "info", "absent", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("epic: absent: no such folder")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("index", "search"), ("index", "build", "x"), ("tasks", "--no-such"), ("fly",)]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert epic(*arguments, cwd=tmp_path).returncode == 2


def test_a_wrong_task_is_found_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "1", "text": "x"}\n')
    done = epic("index", "build", "c.jsonl", "--out", "o", "--task", "web-serch", cwd=tmp_path)
    assert done.returncode == 1
    assert "web-search" in done.stderr


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from epic_retrieval.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'faiss', 'numpy', 'langchain_core', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for arguments in (["--help"], ["index", "--help"], ["index", "build", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "[]"


def test_build_here_and_search_from_elsewhere(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative model path is remembered so that it still leads to the model from elsewhere."""
    rows = ({"id": str(number), "text": f"passage {number}"} for number in range(5))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").symlink_to(tiny_encoder_folder)
    built = epic(
        "index", "build", "c.jsonl", "--out", "deep/index", "--model", "model", cwd=tmp_path
    )
    assert built.returncode == 0, built.stderr
    assert built.stdout == "5 passages in deep/index\n"
    assert "5/5" in built.stderr
    monkeypatch.chdir(tmp_path / "deep")
    found = CliRunner().invoke(app, ["index", "search", "index", "passage", "--json"])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["hits"]) == 5
