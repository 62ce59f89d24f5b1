"""What the command line says: its own options, numbers with nouns, bars, hints."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from epic_retrieval.cli.app import app
from epic_retrieval.cli.filters import filter_hints
from epic_retrieval.cli.index_options import memory_of, types_of
from epic_retrieval.cli.progress import counting_bar, stage_bars
from epic_retrieval.cli.wording import as_options
from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, Progress, build_index
from epic_retrieval.index._words import counted, first_few
from tests.index.samples import ENCODER, build, encode, passages

run = CliRunner().invoke


@pytest.mark.parametrize(
    ("said", "here"),
    [
        ("pass overwrite=True (--overwrite) to", "pass --overwrite to"),
        ("pass skip_empty=True (--skip-empty).", "pass --skip-empty."),
        (
            'on_duplicate="first" or on_duplicate="last".',
            "--on-duplicate first or --on-duplicate last.",
        ),
        ("than 5. Split it, or raise max_chars; no", "than 5. Split it, or raise --max-chars; no"),
        ("dimension is 500: expected 1", "--dim is 500: expected 1"),
        ("target_recall is 0.0: expected", "--recall is 0.0: expected"),
        ("The wished recall is 0.0: expected", "--recall is 0.0: expected"),
        ('use mode="none" or mode="text", or', "use --mode none or --mode text, or"),
        ("where['a'] is []: expected", "--where['a'] is []: expected"),
        ("vectors of dimension 5", "vectors of dimension 5"),
    ],
)
def test_messages_name_options(said: str, here: str) -> None:
    assert as_options(said) == here


def test_numbers_have_their_noun() -> None:
    assert counted(1, "passage") == "1 passage"
    assert counted(2000, "passage") == "2,000 passages"
    assert first_few(["a", "b"]) == '"a", "b"'
    assert first_few(list("abcdef")) == '"a", "b", "c" and 3 more'


def test_memory_that_serves_nothing_is_refused() -> None:
    assert memory_of("32M") == 2**25
    assert memory_of(None) is None
    with pytest.raises(InputError, match="--max-memory is 1K: expected at least 32M"):
        memory_of("1K")


def test_types_are_read() -> None:
    assert types_of("year=int, price = float") == {"year": "int", "price": "float"}
    assert types_of(None) == {}
    for wrong in ("year", "", "=int", "year="):
        with pytest.raises(InputError, match="expected such as"):
            types_of(wrong)
    with pytest.raises(InputError, match="two types"):
        types_of("a=int,a=float")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hints") / "index"
    rows = [
        Passage(
            "a", "x", metadata={"year": "2001", "n": 1, "ok": "true", "mixed": 1, "free": True}
        ),
        Passage("b", "y", metadata={"year": "1999", "n": 2, "ok": "false", "mixed": "1"}),
    ]
    build_index(rows, encode, out, encoder=ENCODER)
    return out


@pytest.mark.parametrize(
    ("condition", "hints"),
    [
        ({"year": {"$gte": 2000}}, ['"year" holds texts only, never a number.*--types year=int']),
        ({"$or": [{"n": 1}, {"year": {"$nin": [2001]}}]}, ['"year" holds texts only']),
        ({"ok": True}, ['"ok" holds texts only, never a boolean.*--types ok=bool']),
        ({"n": "1"}, ['"n" holds numbers only, never a text: write a number, without quotes']),
        ({"yaer": 1}, ['no passage has the field "yaer"; there are free, mixed, n, ok, year']),
        ({"year": "2001", "n": {"$lt": 0}, "mixed": 5, "_id": "a", "n.x": None}, []),
        ({"mixed": "5"}, []),
        ({"free": 1}, ['"free" holds booleans only, never a number: write true or false, without']),
        ({"free": "true"}, ["write true or false, without quotes"]),
        ({"n": True}, ["write a number, without quotes"]),
        ({"id": "a"}, ['an id is not among the metadata; to filter by it write "_id"']),
        ({"title": "x", "text": {"$gt": "a"}}, ["a title is not", "a text is not among the meta"]),
    ],
)
def test_a_filter_that_can_match_nothing_is_told(
    folder: Path, condition: dict[str, object], hints: list[str]
) -> None:
    found = filter_hints(folder, condition)
    assert len(found) == len(hints)
    for hint, expected in zip(found, hints, strict=True):
        assert re.search(expected, hint), hint


def stage(
    name: str, done: int, total: int | None, note: str = "", seconds: float = 2.0
) -> Progress:
    return Progress(name, done, total, seconds=seconds, note=note)  # type: ignore[arg-type]


def test_bars_have_a_speed_and_the_stages_names(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_bars() as show:
        show(stage("encoding", 0, 8, seconds=0))
        show(stage("encoding", 4, 8))
        show(stage("encoding", 8, 8))
        show(stage("choosing", 8, 8, "a graph, as asked for"))
        show(stage("measuring", 0, None))
        show(stage("measuring", 3, None))
        show(stage("measuring", 3, 3, "recall 0.99"))
        show(stage("merging", 5, 5))
        show(stage("merging", 2, 5))
    said = capsys.readouterr().err
    assert "?" not in said
    assert "8/8" in said
    assert "choosing" not in said
    assert "3/3" in said
    assert "trials" in said
    lines = said.replace("\r", "\n").splitlines()
    assert lines.index("a graph, as asked for") < lines.index("recall 0.99")
    # A stage that begins anew has a bar of its own.
    assert any("2/5" in line for line in lines[-2:])


def test_a_bar_knows_how_long_its_stage_has_run(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_bars() as show:
        show(stage("encoding", 10, 20, seconds=5.0))
    assert "[00:05<00:05,  2.00 passages/s]" in capsys.readouterr().err
    with counting_bar("exporting") as advance:
        advance(2, 2)
    assert "exporting: 100%" in capsys.readouterr().err
    with counting_bar("exporting"):
        pass
    assert capsys.readouterr().err == ""


def test_an_interrupted_build_says_what_it_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(texts: list[str]) -> np.ndarray:
        if "Text of passage 12." in texts:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt), stage_bars() as progress:
        build_index(
            passages(30),
            stop,
            tmp_path / "index",
            encoder=ENCODER,
            shard_size=10,
            progress=progress,
        )
    said = capsys.readouterr().err
    assert "epic: 1 finished shard (10 passages) is kept in" in said
    assert "The same command goes on from there." in said


def test_an_interrupted_build_says_that_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(texts: list[str]) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), stage_bars() as progress:
        build_index(passages(3), stop, tmp_path / "index", encoder=ENCODER, progress=progress)
    said = capsys.readouterr().err
    assert "epic: Nothing is kept yet: a shard is kept when it is full, which is at 50,000" in said
    assert "epic: With a smaller --shard-size less is lost." in said


def test_an_export_is_asked_for_clearly(tmp_path: Path) -> None:
    build(tmp_path / "index", 3)
    export = ["index", "export", str(tmp_path / "index")]
    done = run(app, [*export, str(tmp_path / "out.txt")])
    assert "such as out.parquet" in str(done.exception)
    assert "--to qdrant" in str(run(app, [*export, "http://localhost:6333"]).exception)
    done = run(app, [*export, str(tmp_path / "o.parquet"), "--collection", "c"])
    assert "--to qdrant" in str(done.exception)
    assert not (tmp_path / "out.txt").exists()
    done = run(app, [*export, str(tmp_path / "o.parquet")])
    assert "3 passages exported" in done.stdout, done.output


def test_ids_that_are_not_there_are_named(tmp_path: Path) -> None:
    build(tmp_path / "index", 6)
    done = run(app, ["index", "delete", str(tmp_path / "index"), "d1", *"vwxyz", "d2", "v"])
    assert done.stdout.startswith("2 passages deleted")
    assert 'not in the index: 5 ids, "v", "w", "x" and 2 more' in done.stderr
    done = run(app, ["index", "delete", str(tmp_path / "index"), "d3"])
    assert done.stderr == ""


def test_what_is_no_index_is_said_once(tmp_path: Path) -> None:
    done = run(app, ["index", "verify", str(tmp_path)])
    assert str(done.exception).count(str(tmp_path)) == 1
    done = run(app, ["index", "verify", str(tmp_path), "--model", "x"])
    assert "--sample" in str(done.exception)


def test_leftovers_are_told(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, 3)
    (out / "search").mkdir()
    assert run(app, ["index", "verify", str(out)]).stderr == ""
    (out / "pending").mkdir()
    (out / "pending" / "promise.json").write_text("{}")
    done = run(app, ["index", "verify", str(out)])
    assert done.exit_code == 0
    assert "1 leftover " in done.stderr
    assert "pending/promise.json" in done.stderr
