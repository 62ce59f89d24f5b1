"""What is wrong with a local set, said with file and line before anything is evaluated."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from epic_retrieval import InputError, Task
from epic_retrieval.evaluation.local import find_local
from epic_retrieval.evaluation.local_tasks import local_task
from epic_retrieval.evaluation.suites import local_tasks
from tests.evaluation import sets


def load(given: Path | str, **options: bool) -> None:
    local_tasks([find_local(str(given), **options)])  # type: ignore[arg-type]


def append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("kind", sets.KINDS)
def test_kinds_are_told_by_their_files(kind: str, tmp_path: Path) -> None:
    folder = sets.KINDS[kind](tmp_path / "some set")
    found = find_local(str(folder))
    assert (found.kind, found.name, found.split) == (kind, "some set", "test")
    load(folder)
    for path in list(folder.glob("*.*")):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert find_local(str(folder)).kind == kind
    load(folder)


def test_meta_gives_name_and_kind(tmp_path: Path) -> None:
    folder = sets.classification(tmp_path / "set")
    (folder / "meta.json").write_text('{"name": "Banks", "kind": "clustering"}')
    found = find_local(str(folder))
    assert (found.kind, found.name) == ("clustering", "Banks")
    assert find_local(f"classification:{folder}").kind == "classification"
    (folder / "meta.json").write_text('{"kind": "classification+clustering"}')
    with pytest.raises(InputError, match=f"say which, as classification:{folder} or clustering:"):
        find_local(str(folder))
    (folder / "meta.json").write_text('{"name": "../x"}')
    with pytest.raises(InputError, match=r"the name is '\.\./x'; expected one that a file could"):
        find_local(str(folder))
    (folder / "meta.json").write_text("[]")
    with pytest.raises(InputError, match=r"meta\.json: expected an object"):
        find_local(str(folder))


def test_a_task_in_the_folder_is_found(tmp_path: Path) -> None:
    task = Task("mine", "Find it", sets.SHOWN)
    found = find_local(str(sets.with_task(sets.sts(tmp_path / "set"), task)))
    assert found.task == task
    assert local_task(found).metadata.prompt == "Find it"


def test_splits(tmp_path: Path) -> None:
    folder = sets.retrieval(tmp_path / "set")
    for name in ("queries.jsonl", "qrels.tsv"):
        (folder / f"dev_{name}").write_text((folder / name).read_text())
    assert find_local(str(folder), split="dev").files[1].name == "dev_queries.jsonl"
    with pytest.raises(InputError, match="no split 'train': there are dev, test; choose one with"):
        find_local(str(folder), split="train")
    (folder / "dev_queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"no queries\.jsonl for the judgements in dev_qrels\.tsv"):
        find_local(str(folder))
    alone = sets.clustering(tmp_path / "alone")
    (alone / "test.tsv").rename(alone / "all.tsv")
    assert find_local(str(alone)).split == "all"
    (sets.classification(tmp_path / "c") / "train.tsv").unlink()
    with pytest.raises(InputError, match=r"needs train\.tsv to train on"):
        find_local(f"classification:{tmp_path / 'c'}")


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        find_local(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="holds nothing to evaluate"):
        find_local(str(tmp_path))
    with pytest.raises(InputError, match=r"no corpus\.jsonl"):
        find_local(f"retrieval:{tmp_path}")
    with pytest.raises(
        InputError, match=r"there is none at all; .* add a file \(\.tsv, \.tsv\.gz\)"
    ):
        find_local(f"sts:{tmp_path}")


def corpus(row: str) -> Callable[[Path], None]:
    return lambda folder: append(folder / "corpus.jsonl", row)


def added(name: str, row: str) -> Callable[[Path], None]:
    return lambda folder: append(folder / name, row)


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("retrieval", added("corpus.jsonl", '{"_id": "d99", "text": " "}'), "skip-empty"),
        ("retrieval", added("corpus.jsonl", '{"_id": "d1", "text": "x"}'), '"d1" stands twice'),
        ("retrieval", added("queries.jsonl", '{"_id": "q1", "text": "x"}'), "stands twice"),
        ("retrieval", added("queries.jsonl", '{"_id": "q9", "text": ""}'), "line 7: .* is blank"),
        ("retrieval", added("queries.jsonl", '{"text": "x"}'), 'line 7: no "_id"'),
        ("retrieval", added("qrels.tsv", "q1\td1"), "line 22: 2 fields; expected 3"),
        ("retrieval", added("qrels.tsv", "q1\td1\thigh"), "line 22: the grade is 'high'"),
        ("retrieval", added("qrels.tsv", "q99\td1\t1"), 'judges 1 queries .* such as "q99"'),
        ("retrieval", added("qrels.tsv", "q1\td99\t1"), 'judges 1 passages .* such as "d99"'),
        ("reranking", added("test.jsonl", '{"query": "x", "positive": []}'), '"negative" is no'),
        ("sts", added("test.tsv", "much\ta\tb"), "line 31: 'much' is no score"),
        ("sts", added("test.tsv", "nan\ta\tb"), "line 31: 'nan' is no score"),
        ("sts", added("test.tsv", "1\ta\t "), "line 31: a text is blank"),
        ("sts", added("test.tsv", "1\ta\tb\tc"), "line 31: 4 fields"),
        ("classification", added("test.tsv", "new\ta"), "the label 'new' stands nowhere in train"),
        ("classification", added("train.tsv", "\ta"), "line 61: the label is blank"),
        ("clustering", added("test.tsv", "a\tb\tc"), "line 31: 3 fields; expected 2"),
    ],
)
def test_faults_are_named(
    kind: str, spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = sets.KINDS[kind](tmp_path / "set")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load(f"{kind}:{folder}")


def test_sets_without_a_difference_are_refused(tmp_path: Path) -> None:
    for kind, row, message in (
        ("sts", "1\ta\tb", "all scores are equal"),
        ("pair_classification", "1\ta\tb", "fewer than two different labels"),
        ("clustering", "a\tb", "fewer than two different labels"),
        ("pair_classification", "2\ta\tb", "the label is '2'; expected 0 or 1"),
    ):
        (tmp_path / "test.tsv").write_text(f"{row}\n{row}\n")
        with pytest.raises(InputError, match=message):
            load(f"{kind}:{tmp_path}")
    (tmp_path / "test.tsv").write_text("one\n")
    with pytest.raises(InputError, match="two or three fields"):
        find_local(str(tmp_path))
    (tmp_path / "test.tsv").unlink()
    row_of_one = {"query": "a", "positive": ["b"], "negative": []}
    (tmp_path / "test.jsonl").write_text(json.dumps(row_of_one))
    with pytest.raises(InputError, match="no query has both"):
        load(f"reranking:{tmp_path}")


def test_empty_passages_can_be_left_out_though_they_are_judged(tmp_path: Path) -> None:
    folder = sets.retrieval(tmp_path / "set")
    append(folder / "corpus.jsonl", '{"_id": "d99", "text": " "}')
    append(folder / "qrels.tsv", "q1\td99\t2")
    load(folder, skip_empty=True)
    kept, refused = (
        find_local(str(folder), skip_empty=skip).fingerprint() for skip in (True, False)
    )
    assert kept != refused


def test_real_sets_load(data_root: Path) -> None:
    for name in ("reranking/trecqa", "sts/stsb", "pair_classification/mrpc", "retrieval/se_coffee"):
        load(data_root / name)
    task = local_task(find_local(str(data_root / "reranking" / "trecqa")))
    task.load_data()
    assert len(task.dataset["default"]["test"]["queries"]) == 68  # type: ignore[index]
