import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from epic_retrieval import Demonstration, Task
from epic_retrieval.cli.app import app
from epic_retrieval.errors import EpicError
from tests.demonstrations.samples import rows, write_pairs

run = CliRunner().invoke


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", rows(120))


def select(pairs: Path, out: Path, *options: str) -> Result:
    named = ["demos", "select", str(pairs), "--out", str(out), "--instruction", "Find the fact"]
    return run(app, [*named, *options])


def failure(result: Result) -> str:
    assert isinstance(result.exception, EpicError), result.output
    return str(result.exception)


def test_select_with_the_bundled_model(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "my facts.yaml"
    done = select(pairs, out, "-k", "1", "-k", "3", "--draws", "1")
    assert done.exit_code == 0, done.output
    task = Task.load(out)
    record = task.selection
    assert record is not None
    assert (task.name, task.instruction, task.symmetric) == ("my-facts", "Find the fact", False)
    assert (record.model, record.metric, record.mode) == ("epic-mini", "ndcg@10", "epic")
    low, _ = record.interval
    assert record.outcome == ("with" if low > 0 else "without")
    assert bool(task.demonstrations) == (record.outcome == "with")
    assert record.queries_choosing + record.queries_deciding + 40 > 110
    assert "instruction alone" in done.stdout
    assert f"gain {record.gain:+.4f}, 95% interval" in done.stdout
    assert not list(tmp_path.glob(".*")), "unfinished work is removed when it is finished"


def test_keep_and_other_settings(pairs: Path, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "facts.json"
    options = ["--model", str(tiny_encoder_folder), "--device", "cpu", "--keep"]
    options += ["--strategy", "diverse", "-k", "2", "--mode", "text", "--dev", str(pairs)]
    failed = select(pairs, out, *options)
    assert "no pair is left" in failure(failed)
    other = write_pairs(tmp_path / "other.jsonl", rows(200)[120:])
    options += ["--dev", str(other)]
    done = select(pairs, out, *options)
    assert done.exit_code == 0, done.output
    record = Task.load(out).selection
    assert record is not None
    assert (record.strategy, record.k, record.mode, record.candidates) == ("diverse", 2, "text", 1)
    assert record.outcome == "with"
    assert record.passages == 80
    assert record.model == tiny_encoder_folder.name, "no folders of this machine"
    assert len(Task.load(out).demonstrations) == 2
    assert done.stdout.startswith("120 pairs to choose from;")


def test_a_run_that_stopped_leaves_its_work(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "facts.yaml"
    with monkeypatch.context() as patch:
        patch.setattr("epic_retrieval.demonstrations.choose.paired_bootstrap", stop)
        select(pairs, out, "-k", "1", "--draws", "1")
    [work] = (tmp_path / ".facts.yaml.work").iterdir()
    assert len(list(work.glob("scores-*.json"))) >= 4
    assert not out.exists()
    assert select(pairs, out, "-k", "1", "--draws", "1").exit_code == 0
    assert not work.exists()


def test_select_says_what_is_wrong_before_a_model_is_loaded(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.yaml"
    model = ["--model", str(tmp_path / "no-model")]
    few = write_pairs(tmp_path / "few.jsonl", rows(30))
    assert "at least 20 each" in failure(select(few, out, *model))
    assert "unknown mode 'bits'" in failure(select(pairs, out, "--mode", "bits", *model))
    assert "expected a file in a folder" in failure(select(pairs, tmp_path / "t.txt", *model))
    assert "confidence 95" in failure(select(pairs, out, "--confidence", "95", *model))
    bare = run(app, ["demos", "select", str(pairs), "--out", str(out)])
    assert "no instruction was given" in failure(bare)
    assert "strategy is 'magic'" in failure(select(pairs, out, "--strategy", "magic"))
    assert "holds no pairs" in failure(select(write_pairs(few, []), out, *model))


def test_check_finds_a_leak(pairs: Path, tmp_path: Path) -> None:
    secret = rows(120)[7]
    task = Task("t", "Find it", (Demonstration(secret["query"].upper(), "something else"),))
    task.save(tmp_path / "t.yaml")
    named = ["demos", "check", str(tmp_path / "t.yaml")]
    leaky = run(app, [*named, "--test", str(pairs)])
    assert leaky.exit_code == 1
    line = f"LEAK     demonstration 1, query is query of pairs.jsonl: {secret['query']}"
    assert line in leaky.stdout.splitlines()
    assert "1 demonstrations: 1 leaks from pairs.jsonl" in leaky.stdout
    clean = run(app, named)
    assert clean.exit_code == 0
    assert "no --test was given" in clean.stdout


def test_check_names_oddities_and_old_records(tmp_path: Path) -> None:
    shown = [{"query": "Query: who", "passage": "me"}, {"query": "long", "passage": "word " * 900}]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"name": "t", "instruction": "Find", "demonstrations": shown}))
    done = run(app, ["demos", "check", str(path)])
    assert done.exit_code == 0, "only leaks fail"
    assert "WARNING  demonstration 1, query: begins with 'Query:'" in done.stdout
    assert "WARNING  demonstration 2, passage:" in done.stdout


def test_check_sees_a_record_of_other_demonstrations(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.yaml"
    options = ["--strategy", "random", "-k", "2", "--draws", "1", "--keep"]
    assert select(pairs, out, *options).exit_code == 0
    named = ["demos", "check", str(out)]
    assert "choose again" not in run(app, named).stdout
    task = Task.load(out)
    data = task.to_dict() | {"demonstrations": [task.demonstrations[0].to_dict()]}
    Task.from_dict(data).save(out)
    expected = "its record is of 2 demonstrations, outcome 'with': choose again"
    assert expected in run(app, named).stdout
