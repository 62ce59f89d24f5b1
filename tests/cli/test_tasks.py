import json
from pathlib import Path

from typer.testing import CliRunner

from epic_retrieval import Demonstration, Task, __version__, builtin_tasks
from epic_retrieval.cli.app import app

run = CliRunner().invoke


def test_version() -> None:
    assert run(app, ["--version"]).stdout == f"epic {__version__}\n"


def test_lists_every_builtin_task() -> None:
    lines = run(app, ["tasks"]).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(builtin_tasks())
    (row,) = [line for line in lines if line.startswith("python-docs ")]
    assert row.split()[:4] == ["python-docs", "epic", "5", "asymmetric"]


def test_list_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(run(app, ["tasks", "--json"]).stdout)}
    assert rows.keys() == builtin_tasks().keys()
    assert rows["duplicate-questions"]["symmetric"] is True
    assert rows["SciFact"]["source"] == "mteb"


def test_shows_one_task() -> None:
    shown = run(app, ["tasks", "python-docs"]).stdout
    task = builtin_tasks()["python-docs"]
    assert task.instruction in shown
    for demonstration in task.demonstrations:
        assert demonstration.query in shown


def test_shows_a_task_file_as_json_that_loads_again(tmp_path: Path) -> None:
    task = Task("mine", "Find “it”", (Demonstration("a\nb", "c"),), symmetric=True)
    task.save(tmp_path / "mine.yaml")
    shown = run(app, ["tasks", str(tmp_path / "mine.yaml"), "--json"]).stdout
    assert Task.from_dict(json.loads(shown)) == task
