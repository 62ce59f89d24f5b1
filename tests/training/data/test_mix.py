from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import Task
from epic_training.data.mix import DatasetSettings, load_mix, open_mix
from epic_training.pairs import is_development
from tests.training.data.samples import flag_rows, pair_rows, write_jsonl, write_text

FIND = "Given a question, retrieve passages that answer it"


def write_mix(path: Path, document: object) -> Path:
    if not isinstance(document, str):
        document = yaml.safe_dump(document, sort_keys=False)
    return write_text(path, document)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Data sets under `data`; mix files go beside it."""
    write_jsonl(tmp_path / "data" / "plain" / "pairs.jsonl", pair_rows(200, negatives=True))
    write_jsonl(tmp_path / "data" / "own.jsonl", flag_rows(20, prompt="from rows", type="normal"))
    return tmp_path


def test_what_is_not_said_has_its_default(root: Path) -> None:
    path = write_mix(
        root / "mix.yaml",
        {
            "root": "data",
            "datasets": {
                "plain": {"instruction": FIND},
                "other": {
                    "path": "own.jsonl",
                    "format": "flagembedding",
                    "instructions": ["one", "two"],
                    "ratio": 2,
                    "symmetric": True,
                    "in_batch_negatives": False,
                    "development": 5,
                },
                "rows": {"path": str(root / "data" / "own.jsonl")},
            },
            "development_percent": 1.5,
        },
    )
    mix = load_mix(path)
    assert mix.path == path
    assert mix.datasets == (
        DatasetSettings("plain", root / "data" / "plain", "pairs", (FIND,), development=1.5),
        DatasetSettings(
            "other",
            root / "data" / "own.jsonl",
            "flagembedding",
            ("one", "two"),
            ratio=2,
            symmetric=True,
            in_batch_negatives=False,
            development=5,
        ),
        DatasetSettings("rows", root / "data" / "own.jsonl", "flagembedding", development=1.5),
    )


def test_the_root_argument_wins_over_the_file(root: Path) -> None:
    document = {"root": "nowhere", "datasets": {"plain": {"instruction": FIND}}}
    path = write_mix(root / "elsewhere" / "mix.yaml", document)
    with pytest.raises(InputError, match="there is no such file or folder"):
        load_mix(path)
    assert load_mix(path, root / "data").datasets[0].path == root / "data" / "plain"


def test_an_opened_mix_is_ready_to_train_on(root: Path) -> None:
    path = write_mix(
        root / "mix.yaml",
        {
            "root": "data",
            "datasets": {
                "plain": {"instructions": [FIND, "another"], "ratio": 0.5, "development": 20},
                "rows": {"path": "own.jsonl"},
            },
        },
    )
    plain, rows = open_mix(load_mix(path), root / "cache")
    assert plain.tasks == (Task("plain", FIND), Task("plain-2", "another"))
    assert (plain.name, plain.ratio, plain.in_batch_negatives) == ("plain", 0.5, True)
    held = [n for n in range(200) if is_development(plain.rows[n].query, 20)]
    assert 0 < len(held) < 200
    assert plain.development.tolist() == held
    assert plain.train.tolist() == sorted({*range(200)} - {*held})
    assert plain.train.dtype == plain.development.dtype == np.int64
    assert rows.tasks == (Task("rows", "from rows"),)
    assert (len(rows.train), len(rows.development), rows.ratio) == (20, 0, 1.0)
    assert len(list((root / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("kind", "symmetric", "in_batch"),
    [
        ("normal", False, True),
        ("only_1neg", False, True),
        ("symmetric_sts", True, True),
        ("symmetric_class", False, False),
        ("symmetric_clustering", True, False),
        (None, False, True),
    ],
)
def test_the_kind_of_rows_sets_defaults(
    tmp_path: Path, kind: str | None, symmetric: bool, in_batch: bool
) -> None:
    write_jsonl(tmp_path / "a.jsonl", flag_rows(3, prompt="find", type=kind))
    path = write_mix(tmp_path / "mix.yaml", {"datasets": {"a": {"path": "a.jsonl"}}})
    (found,) = open_mix(load_mix(path), tmp_path / "cache")
    assert (found.tasks[0].symmetric, found.in_batch_negatives) == (symmetric, in_batch)
    said = {"path": "a.jsonl", "symmetric": not symmetric, "in_batch_negatives": not in_batch}
    path = write_mix(tmp_path / "mix.yaml", {"datasets": {"a": said}})
    (found,) = open_mix(load_mix(path), tmp_path / "cache")
    assert (found.tasks[0].symmetric, found.in_batch_negatives) == (not symmetric, not in_batch)


def test_a_hub_id_is_kept_as_it_is(tmp_path: Path) -> None:
    entry = {"path": "owner/name:config", "format": "triplets", "instruction": FIND}
    path = write_mix(tmp_path / "mix.yaml", {"datasets": {"nli": entry}})
    mix = load_mix(path)
    assert mix.datasets[0].path == Path("owner/name:config")
    with pytest.raises(InputError, match=r"mix\.yaml: dataset 'nli': owner/name:config: "):
        open_mix(mix, tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"weight": 2}, "unknown key 'weight'"),
        ({"ratio": 0}, "ratio is 0; remove the dataset instead"),
        ({"ratio": -1}, "ratio is -1; expected a number above 0"),
        ({"ratio": float("nan")}, "ratio is nan; expected a number"),
        ({"ratio": "half"}, "ratio is 'half'; expected a number"),
        ({"ratio": True}, "ratio is True; expected a number"),
        ({"instruction": None}, "instruction is None"),
        ({"instruction": " "}, "instruction is ' '"),
        ({"instructions": [FIND]}, "both instruction and instructions"),
        ({"path": "nowhere"}, "nowhere: there is no such file or folder"),
        ({"path": 5}, "path is 5"),
        ({"format": "flag"}, "unknown format 'flag'"),
        ({"format": "beir"}, "no BEIR training data"),
        ({"symmetric": "yes"}, "symmetric is 'yes'; expected true or false"),
        ({"in_batch_negatives": 1}, "in_batch_negatives is 1; expected true or false"),
        ({"development": 100}, "development is 100; expected a percentage from 0 to below 100"),
        ({"development": -1}, "development is -1"),
        ({"development": "x"}, "development is 'x'; expected a number"),
    ],
)
def test_a_bad_setting_is_named_with_file_and_data_set(
    root: Path, settings: dict[str, Any], fault: str
) -> None:
    entry = {"instruction": FIND} | settings
    path = write_mix(root / "mix.yaml", {"root": "data", "datasets": {"plain": entry}})
    with pytest.raises(InputError) as raised:
        load_mix(path)
    assert str(raised.value).startswith(f"{path}: dataset 'plain': ")
    assert fault in str(raised.value)


@pytest.mark.parametrize(
    "settings", ["{}", "", "{instructions: []}", "{instructions: [a, a]}", "[]"]
)
def test_an_instruction_is_needed(root: Path, settings: str) -> None:
    path = write_mix(root / "mix.yaml", f"root: data\ndatasets:\n  plain: {settings}\n")
    with pytest.raises(InputError, match=r"mix\.yaml: dataset 'plain': .*(instruction|mapping)"):
        load_mix(path)


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({}, "missing key 'datasets'"),
        ({"datasets": {}}, "datasets is {}; expected a mapping of one or more"),
        ({"datasets": None}, "datasets is None"),
        ({"datasets": ["plain"]}, "datasets is ['plain']"),
        ({"data": {}, "datasets": {}}, "unknown key 'data'"),
        ({"root": 3, "datasets": {"plain": None}}, "root is 3"),
        ({"datasets": {2019: None}}, "dataset 2019: its name is a int; put it in quotes"),
        ({"datasets": {"no such": {"path": "data/plain"}}}, "dataset 'no such': name is"),
        ("datasets: {a: {}, b: {}, a: {}}", "the key 'a' stands 2 times"),
        ("datasets: [", "not valid YAML"),
        ([], "got []"),
    ],
)
def test_a_bad_mix_file_is_named(root: Path, document: object, fault: str) -> None:
    path = write_mix(root / "mix.yaml", document)
    with pytest.raises(InputError) as raised:
        load_mix(path)
    assert str(path) in str(raised.value)
    assert fault in str(raised.value)


def test_a_mix_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_mix(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("rows", "settings", "fault"),
    [
        (flag_rows(3), {}, "no instruction, and the rows carry none"),
        (
            [*flag_rows(2, prompt="a"), *flag_rows(1, prompt="b")],
            {},
            "row 3 has the instruction 'b', but row 1 has 'a'; add \"instruction: ...\"",
        ),
        (
            [*flag_rows(2, type="normal"), *flag_rows(1, type="symmetric_sts")],
            {"instruction": FIND},
            "row 3 has the kind 'symmetric_sts', but row 1 has 'normal'; say symmetric and",
        ),
        (
            flag_rows(3, negatives=0, type="symmetric_class"),
            {"instruction": FIND},
            "in_batch_negatives is false, but no row has a negative of its own",
        ),
        (flag_rows(1), {"instruction": FIND, "development": 99.999999}, "all 1 rows are held out"),
        ([*flag_rows(1), {"query": "q", "pos": [""]}], {"instruction": FIND}, "line 2: positive 1"),
    ],
)
def test_what_only_the_rows_can_tell_is_found_on_opening(
    tmp_path: Path, rows: list[dict[str, object]], settings: dict[str, Any], fault: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows)
    entry = {"path": "a.jsonl"} | settings
    path = write_mix(tmp_path / "mix.yaml", {"datasets": {"toy": entry}})
    mix = load_mix(path)
    with pytest.raises(InputError) as raised:
        open_mix(mix, tmp_path / "cache")
    assert str(raised.value).startswith(f"{path}: dataset 'toy': ")
    assert fault in str(raised.value)


def test_different_kinds_do_when_the_mix_says_what_counts(tmp_path: Path) -> None:
    rows = [*flag_rows(2, type="normal"), *flag_rows(1, type="symmetric_sts")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    entry = {"path": "a.jsonl", "instruction": FIND, "symmetric": True, "in_batch_negatives": True}
    path = write_mix(tmp_path / "mix.yaml", {"datasets": {"toy": entry}})
    (found,) = open_mix(load_mix(path), tmp_path / "cache")
    assert found.tasks[0].symmetric
