"""Whole evaluations: resuming, keys, records, and errors before anything long begins."""

import json
from pathlib import Path

import pytest
from mteb.abstasks import AbsTask

from epic_retrieval import Demonstration, EpicEncoder, InputError, Task, __version__
from epic_retrieval.errors import CheckpointError, EpicError
from epic_retrieval.evaluation.instructions import Instructions
from epic_retrieval.evaluation.local import find_local
from epic_retrieval.evaluation.local_tasks import local_task
from epic_retrieval.evaluation.record import Record, load_records, record_path
from epic_retrieval.evaluation.run import evaluate
from epic_retrieval.evaluation.systems import EpicSystem
from epic_retrieval.prompt import Mode
from tests.evaluation import sets
from tests.models import tiny_encoder

TASK = Task("t", "Find what answers", sets.SHOWN)


def system(encoder: EpicEncoder, mode: Mode = "epic", task: Task = TASK) -> EpicSystem:
    return EpicSystem(encoder, mode, Instructions(tasks={"ranked": task, "sts": task}))


def tasks(folder: Path) -> list[AbsTask]:
    sets.retrieval(folder / "ranked")
    sets.sts(folder / "sts")
    return [local_task(find_local(str(folder / name))) for name in ("ranked", "sts")]


def test_nothing_is_encoded_twice_but_what_changed(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    asked = sets.Asked(encoder)
    given = tasks(tmp_path)

    def encoded(task: Task = TASK, mode: Mode = "epic") -> int:
        before = len(asked.queries) + len(asked.passages)
        evaluate([system(encoder, mode, task)], given, tmp_path / "out", show_progress=False)
        return len(asked.queries) + len(asked.passages) - before

    everything = 5 + 20 + 2 * 30
    assert encoded() == everything
    assert encoded() == 0
    others = TASK.with_demonstrations(sets.OTHERS)
    assert encoded(others) == everything, "other demonstrations"
    assert encoded(others) == encoded() == 0, "both are kept"
    assert encoded(TASK, "none") == everything, "another mode"
    assert encoded(others, "none") == 0, "which has no demonstrations"

    with (tmp_path / "sts" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("3\tone more\tpair\n")
    given[1] = local_task(find_local(str(tmp_path / "sts")))
    assert encoded() == 2 * 31, "other data"


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    asked = sets.Asked(encoder)
    given = tasks(tmp_path)
    first = evaluate([system(encoder)], given[:1], tmp_path / "out", show_progress=False)
    done = len(asked.passages)
    both = evaluate([system(encoder)], given, tmp_path / "out", show_progress=False)
    assert len(asked.passages) == done == 20
    assert both[0] == first[0], "the record too, date and all places of the score"
    assert load_records(tmp_path / "out") == both


def test_a_record_says_under_which_conditions(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    (record,) = evaluate([system(encoder)], tasks(tmp_path)[:1], tmp_path, show_progress=False)
    path = record_path(tmp_path, "tiny-qwen3, epic", "ranked")
    assert path == tmp_path / "records" / "tiny-qwen3_epic" / "ranked.json"
    assert Record.load(path) == record
    assert record.metric == "ndcg_at_10"
    assert record.splits == {"test": {"default": record.score}}
    assert record.conditions == {
        "model": "local/tiny-qwen3",
        "fingerprint": encoder.passage_fingerprint(),
        "precision": "float32",
        "mode": "epic",
        "instruction": TASK.instruction,
        "symmetric": False,
        "demonstrations": [one.to_dict() for one in sets.SHOWN],
        "demonstrations_fingerprint": record.conditions["demonstrations_fingerprint"],
    }
    assert record.versions["epic-retrieval"] == __version__
    assert {"mteb", "torch", "transformers"} <= record.versions.keys()
    assert str(tmp_path) not in path.read_text()


def test_every_system_meets_the_same_draws(tmp_path: Path) -> None:
    task = local_task(find_local(str(sets.clustering(tmp_path / "set"))))
    bare = Instructions(tasks={"set": Task("t", "Find", symmetric=True)})
    scores = [
        evaluate(
            [EpicSystem(tiny_encoder(), "none", bare)], [task], tmp_path / out, show_progress=False
        )[0].score
        for out in ("first", "second")
    ]
    assert scores[0] == scores[1]


def test_what_is_missing_is_said_first(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    asked = sets.Asked(encoder)
    given = tasks(tmp_path)
    out = tmp_path / "out"
    bare = TASK.without_demonstrations()
    for mode in ("epic", "text"):
        with pytest.raises(InputError, match=f"mode {mode} needs demonstrations.*: ranked, sts;"):
            evaluate([system(encoder, mode, bare)], given, out)
    with pytest.raises(InputError, match="two systems are called 'tiny-qwen3, epic'"):
        evaluate([system(encoder), system(encoder)], given, out)
    with pytest.raises(CheckpointError, match="no projector, so it cannot be evaluated in mode"):
        evaluate([system(tiny_encoder(projector=False))], given, out)
    long = TASK.with_demonstrations(Demonstration(f"{n} x" * 400, "y" * 400) for n in range(20))
    with pytest.raises(InputError, match="use fewer demonstrations"):
        evaluate([system(encoder, "text", long), system(encoder, "none")], given, out)
    assert not asked.passages
    assert not out.exists()


def test_data_that_cannot_be_fetched(tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no way there")

    given = tasks(tmp_path)
    given[1].load_data = unreachable  # type: ignore[method-assign]
    with pytest.raises(EpicError, match=r"data of sts could not be fetched \(no way there\)"):
        evaluate([system(tiny_encoder())], given, tmp_path / "out", show_progress=False)
    assert [record.task for record in load_records(tmp_path / "out")] == ["ranked"]


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no records of an evaluation"):
        load_records(tmp_path)
    folder = tmp_path / "records" / "x"
    folder.mkdir(parents=True)
    (folder / "y.json").write_text('{"format": 9}')
    with pytest.raises(InputError, match="no record of an evaluation that this version can read"):
        load_records(tmp_path)
    (folder / "y.json").write_text(json.dumps({"format": 1, "task": "y", "score": 1}))
    with pytest.raises(InputError, match="no complete record"):
        load_records(tmp_path)
