import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from epic_retrieval import EpicEncoder, PassageIndex, Task
from epic_retrieval.checkpoint import BUNDLED_MODEL
from epic_retrieval.cli.app import app
from epic_retrieval.cli.building import quick_count
from epic_retrieval.cli.index_options import bytes_of
from epic_retrieval.cli.models import model_named
from epic_retrieval.cli.wording import as_options
from epic_retrieval.errors import InputError, PassageIndexError

ROWS = [
    {"_id": "a", "title": "Cats", "text": "Cats sleep most of the day.", "source": "zoo"},
    {"_id": "b", "title": "", "text": "Dogs bark at\nstrangers."},
    {"_id": "c", "title": "Rivers", "text": "Water runs downhill."},
]
run = CliRunner().invoke


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "animals.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def model(tiny_encoder_folder: Path) -> list[str]:
    return ["--model", str(tiny_encoder_folder)]


@pytest.fixture(scope="module")
def folder(corpus: Path, model: list[str]) -> Path:
    out = corpus.parent / "index"
    done = run(app, ["index", "build", str(corpus), "--out", str(out), *model])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"3 passages in {out}\n"
    assert "3/3" in done.stderr
    return out


def test_search_prints_the_passages(folder: Path) -> None:
    done = run(app, ["index", "search", str(folder), "who barks?", "-k", "2"])
    assert done.exit_code == 0, done.output
    heading, first, second = done.stdout.splitlines()
    assert heading == "who barks?"
    assert first.split()[0] == "1"
    assert second.split()[0] == "2"


def test_a_title_that_the_text_begins_with_is_shown_once(model: list[str], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("## Cats ##\n\nCats sleep.")
    (notes / "b.md").write_text("Barking.\n\n# Dogs\n\nDogs bark.")
    out = str(tmp_path / "index")
    assert run(app, ["index", "build", str(notes), "--out", out, *model]).exit_code == 0
    lines = run(app, ["index", "search", out, "x"]).stdout.splitlines()[1:]
    shown = {line.split()[2]: line.split(maxsplit=3)[3] for line in lines}
    assert shown == {"a.md": "## Cats ## Cats sleep.", "b.md": "Dogs Barking. # Dogs Dogs bark."}


def test_search_as_json_agrees_with_the_library(folder: Path, tiny_encoder_folder: Path) -> None:
    queries = ["who barks?", "sleepy\tpets"]
    done = run(app, ["index", "search", str(folder), *queries, "--json", "--task", "python-docs"])
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    encoder = EpicEncoder.from_pretrained(tiny_encoder_folder)
    with PassageIndex.open(folder) as index:
        expected = index.search(encoder.encode_queries(queries, "python-docs"), 10)
    assert [line["query"] for line in lines] == queries
    for line, hits in zip(lines, expected, strict=True):
        assert [hit["id"] for hit in line["hits"]] == [hit.passage.id for hit in hits]
        assert [hit["score"] for hit in line["hits"]] == pytest.approx([h.score for h in hits])
        assert {hit["id"]: hit["metadata"] for hit in line["hits"]}["a"] == {"source": "zoo"}


def test_words_without_quotes_are_told(folder: Path) -> None:
    done = run(app, ["index", "search", str(folder), "who", "barks?"])
    assert (
        'epic: 2 queries of one word each; if they are one query, put it in quotes: "who bar'
        in (done.stderr)
    )
    for queries in (["barking"], ["who barks?", "sleep"], ["-", "one"]):
        done = run(app, ["index", "search", str(folder), *queries], input="two\n")
        assert done.exit_code == 0
        assert "quotes" not in done.stderr


def test_search_reads_queries_from_stdin(folder: Path) -> None:
    done = run(app, ["index", "search", str(folder), "-", "--json"], input="one\n\n two \r\n")
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == ["one", " two "]
    done = run(app, ["index", "search", str(folder), "-"], input="\n")
    assert isinstance(done.exception, InputError)


def test_mode_and_task_change_the_answer(folder: Path) -> None:
    def scores(*options: str) -> list[float]:
        done = run(app, ["index", "search", str(folder), "x", "--json", *options])
        assert done.exit_code == 0, done.output
        return [hit["score"] for hit in json.loads(done.stdout)["hits"]]

    assert scores() == scores("--task", "web-search")
    assert len({tuple(scores("--mode", mode)) for mode in ("epic", "none")}) == 2
    assert scores("--task", "python-docs") != scores()


def test_another_model_or_a_symmetric_task_is_refused(folder: Path, tmp_path: Path) -> None:
    from tests.models import save_tiny_encoder

    other = save_tiny_encoder(tmp_path / "other", family="llama")
    done = run(app, ["index", "search", str(folder), "x", "--model", str(other)])
    assert isinstance(done.exception, PassageIndexError)
    done = run(app, ["index", "search", str(folder), "x", "--task", "duplicate-questions"])
    assert isinstance(done.exception, PassageIndexError)
    said = as_options(str(done.exception))
    assert "another encoder: task none, now duplicate-questions. The task" in said
    assert said.endswith("or build the index again with --task duplicate-questions.")


def test_a_symmetric_index_remembers_its_task(
    corpus: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    task = Task("twins", "Find twins", symmetric=True)
    task.save(tmp_path / "twins.json")
    built = ["index", "build", str(corpus), "--out", str(out), *model]
    assert run(app, [*built, "--task", str(tmp_path / "twins.json")]).exit_code == 0
    with PassageIndex.open(out) as index:
        assert index.manifest.encoder.task == "twins"
    done = run(app, ["index", "search", str(out), "x"])
    assert "no built-in task 'twins'" in str(done.exception)
    done = run(app, ["index", "search", str(out), "x", "--task", str(tmp_path / "twins.json")])
    assert done.exit_code == 0, done.output


def test_info(folder: Path, tiny_encoder_folder: Path) -> None:
    shown = run(app, ["index", "info", str(folder)]).stdout
    assert "animals.jsonl" in shown
    assert "metadata     source\n" in shown
    assert str(tiny_encoder_folder) in shown
    manifest = json.loads(run(app, ["index", "info", str(folder), "--json"]).stdout)
    assert (manifest["count"], manifest["encoder"]["dimension"]) == (3, 32)


def test_verify_notices_one_changed_byte(corpus: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "index"
    run(app, ["index", "build", str(corpus), "--out", str(out), *model])
    assert run(app, ["index", "verify", str(out)]).exit_code == 0
    (vectors,) = out.glob("shards/*/vectors.npy")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    done = run(app, ["index", "verify", str(out)])
    assert done.exit_code == 1
    assert "vectors.npy" in done.stderr
    assert not done.stdout


def test_nothing_is_replaced_unasked(folder: Path, corpus: Path, model: list[str]) -> None:
    build = ["index", "build", str(corpus), "--out", str(folder), *model]
    done = run(app, build)
    assert isinstance(done.exception, InputError)
    assert run(app, [*build, "--overwrite"]).exit_code == 0


def test_long_and_empty_passages(model: list[str], tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "text": "four"}\n{"id": "2", "text": " "}\n')
    build = ["index", "build", str(corpus), "--out", str(tmp_path / "out"), *model]
    assert "line 2" in str(run(app, build).exception)
    assert "more than 3" in str(run(app, [*build, "--max-chars", "3"]).exception)
    done = run(app, [*build, "--skip-empty"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("1 passage in")


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(folder: Path, *options: str) -> set[str]:
    done = run(app, ["index", "search", str(folder), "x", "--json", *options])
    assert done.exit_code == 0, done.output
    return {hit["id"] for hit in json.loads(done.stdout)["hits"]}


def test_an_index_is_added_to_changed_and_compacted(
    corpus: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    assert run(app, ["index", "build", str(corpus), "--out", str(out), *model]).exit_code == 0
    more = written(tmp_path / "more.jsonl", {"id": "d", "text": "Snow is white.", "year": 2001})
    assert "1 added, 0 replaced" in run(app, ["index", "add", str(out), str(more)]).stdout
    again = run(app, ["index", "add", str(out), str(more)])
    assert isinstance(again.exception, InputError)
    both = written(
        tmp_path / "both.jsonl",
        {"id": "d", "text": "Snow is cold.", "year": 2002},
        {"id": "e", "text": "Rain is wet.", "year": 2003},
    )
    done = run(app, ["index", "add", str(out), str(both), "--update"])
    assert "1 added, 1 replaced" in done.stdout, done.output
    assert found(out) == {"a", "b", "c", "d", "e"}
    assert found(out, "--where", '{"year": {"$lt": 2003}}') == {"d"}
    assert "1 passage deleted" in run(app, ["index", "delete", str(out), "a", "nobody"]).stdout
    assert "1 passage deleted" in run(app, ["index", "delete", str(out), "-"], input="b\n").stdout
    done = run(app, ["index", "delete", str(out), "--where", '{"year": 2003}'])
    assert "1 passage deleted" in done.stdout
    assert run(app, ["index", "compact", str(out)]).exit_code == 0
    assert found(out) == {"c", "d"}
    assert "2 (" not in run(app, ["index", "info", str(out)]).stdout
    assert run(app, ["index", "verify", str(out)]).exit_code == 0
    assert "2 passages deleted" in run(app, ["index", "delete", str(out), "--all"]).stdout
    assert found(out) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give ids, --where or --all"),
        (["a", "--where", '{"a": 1}'], "one of them alone"),
        (["a", "--all"], "one of them alone"),
        (["--where", "{}"], "delete all with --all"),
        (["--where", '{"$and": [{}]}'], "delete all with --all"),
        (["--where", "{"], "not valid JSON"),
        (["--where", "[]"], "expected an object"),
        (["--where", '{"a": {"$regex": "x"}}'], "operator"),
    ],
)
def test_what_to_delete_is_said_clearly(folder: Path, options: list[str], message: str) -> None:
    done = run(app, ["index", "delete", str(folder), *options])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_another_kind_is_made_from_the_stored_vectors(model: list[str], tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": str(i), "text": f"Passage {i}."} for i in range(60)]
    many = written(tmp_path / "many.jsonl", *rows)
    out = tmp_path / "index"
    build = ["index", "build", str(many), "--out", str(out), *model]
    assert run(app, [*build, "--dim", "16", "--store", "float16"]).exit_code == 0
    exact = found(out)
    done = run(app, ["index", "rebuild", str(out), "--kind", "hnsw"])
    assert done.exit_code == 0, done.output
    shown = run(app, ["index", "info", str(out)]).stdout
    assert "HNSW" in shown
    assert "16 of 32" in shown
    assert found(out) == exact
    queries = tmp_path / "queries.txt"
    queries.write_text("number one\n\nnumber two\n")
    lines = written(tmp_path / "queries.jsonl", {"text": "number one"}, {"query": "number two"})
    for path in (queries, lines):
        done = run(app, ["index", "tune", str(out), "--queries", str(path), "--recall", "0.9"])
        assert done.exit_code == 0, done.output
        assert "recall" in done.stdout
        assert "(2 queries)" in done.stdout
    other = written(tmp_path / "other.jsonl", {"question": "number one"})
    done = run(app, ["index", "tune", str(out), "--queries", str(other)])
    assert "line 1: expected the query as text under `query` or `text`; there are question" in str(
        done.exception
    )
    done = run(app, ["index", "tune", str(out), "--queries", str(tmp_path / "queries.csv")])
    assert "expected a text file with a query a line" in str(done.exception)


@pytest.mark.parametrize("kind", ["hnsw", "IVF4,Flat", "ivf-pq"])
def test_an_empty_index_is_searched_exactly(model: list[str], tmp_path: Path, kind: str) -> None:
    few = written(tmp_path / "few.jsonl", {"text": "One."}, {"text": "Two."})
    out = str(tmp_path / "index")
    assert run(app, ["index", "build", str(few), "--out", out, *model]).exit_code == 0
    assert run(app, ["index", "delete", out, "--all"]).exit_code == 0
    for _ in range(2):
        done = run(app, ["index", "rebuild", out, "--kind", kind])
        assert done.exit_code == 0, done.output
        assert "The index is empty: search is exact." in done.stderr
        assert done.stdout.startswith("0 passages in")
        assert run(app, ["index", "compact", out]).exit_code == 0


def test_recall_is_told_once_of_what_is_alive(model: list[str], tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": str(i), "text": f"Passage {i}."} for i in range(60)]
    many = written(tmp_path / "many.jsonl", *rows)
    out = str(tmp_path / "index")
    assert run(app, ["index", "build", str(many), "--out", out, *model]).exit_code == 0
    assert run(app, ["index", "delete", out, "7"]).exit_code == 0
    done = run(app, ["index", "rebuild", out, "--kind", "hnsw"])
    assert done.exit_code == 0, done.output
    assert "Deleted among them: 1;" in done.stderr
    assert "(59 queries made from stored vectors)" in done.stderr
    told = done.stderr.partition("recall@10 ")[2].split()[0]
    assert done.stdout.endswith(f"recall@10 {told}\n")


def test_shards_are_encoded_merged_and_exported(
    corpus: Path, folder: Path, model: list[str], tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    shards, out, table = tmp_path / "shards", tmp_path / "index", tmp_path / "out.parquet"
    done = run(app, ["encode", str(corpus), "--out", str(shards), *model])
    assert done.exit_code == 0, done.output
    assert "3 passages in 1 shard," in done.stdout
    assert run(app, ["index", "build", str(shards), "--out", str(out)]).exit_code == 0
    assert found(out) == found(folder)
    done = run(app, ["index", "build", str(shards), "--out", str(out), "--overwrite"])
    assert "--overwrite has no effect" in str(done.exception)
    cut = ["index", "build", str(shards), "--out", str(tmp_path / "cut")]
    done = run(app, [*cut, "--kind", "nonsense"])
    assert "go on with `epic index rebuild" in done.exception.__notes__[0]  # type: ignore[union-attr]
    done = run(app, ["index", "search", str(shards), "x"])
    assert "encoded shards, not an index yet" in str(done.exception)
    done = run(app, ["index", "export", str(shards), str(table)])
    assert done.exit_code == 0, done.output
    assert pq.read_table(table).column("id").to_pylist() == ["a", "b", "c"]
    more = written(tmp_path / "more.jsonl", {"id": "d", "text": "Snow is white."})
    other = tmp_path / "other"
    assert run(app, ["index", "build", str(more), "--out", str(other), *model]).exit_code == 0
    joined = tmp_path / "joined"
    done = run(app, ["index", "merge", str(folder), str(other), "--out", str(joined)])
    assert done.exit_code == 0, done.output
    assert found(joined) == {"a", "b", "c", "d"}


def test_cells_of_a_table_get_types(model: list[str], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,text,year\na,x,1999\nb,y,2001\n")
    out, exported = tmp_path / "index", tmp_path / "out.parquet"
    build = ["index", "build", str(table), "--out", str(out), *model]
    after = ["--where", '{"year": {"$gte": 2000}}']
    assert run(app, build).exit_code == 0
    done = run(app, ["index", "search", str(out), "x", *after])
    assert done.stdout == f"x\n     no passage matches {after[1]}\n"
    assert "--types year=int" in done.stderr
    assert run(app, [*build, "--overwrite", "--types", "year=int"]).exit_code == 0
    assert found(out, *after) == {"b"}
    # An export of ours is a corpus again, and nothing in it has changed.
    assert run(app, ["index", "export", str(out), str(exported)]).exit_code == 0
    done = run(app, ["index", "add", str(out), str(exported), "--update"])
    assert "0 added, 0 replaced" in done.stdout, done.output


def test_passages_are_encoded_again_to_verify(
    folder: Path, corpus: Path, model: list[str], tmp_path: Path
) -> None:
    from tests.models import save_tiny_encoder

    done = run(app, ["index", "verify", str(folder), "--sample", "2"])
    assert done.exit_code == 0, done.output
    assert "every file is as it was written; 2 passages encoded again" in done.stdout
    other = save_tiny_encoder(tmp_path / "other", family="llama")
    done = run(app, ["index", "verify", str(folder), "--sample", "2", "--model", str(other)])
    assert "was built with another encoder: model " in str(done.exception)


def test_another_precision_is_verified_with_a_lower_cosine(folder: Path) -> None:
    verify = ["index", "verify", str(folder), "--sample", "3"]
    rough = run(app, [*verify, "--dtype", "int8", "--least", "1"])
    assert rough.exit_code == 1
    assert "expected at least 1" in rough.stderr
    assert "give it with --dtype, and a lower --least: 0.95 for int8" in rough.stderr
    done = run(app, [*verify, "--dtype", "int8"])
    assert done.exit_code == 0, done.output
    assert "go with --sample" in str(run(app, [*verify[:3], "--least", "0.9"]).exception)


def test_of_an_empty_index_nothing_is_sampled(
    corpus: Path, model: list[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "index")
    assert run(app, ["index", "build", str(corpus), "--out", out, *model]).exit_code == 0
    assert run(app, ["index", "delete", out, "a", "b", "c"]).exit_code == 0
    done = run(app, ["index", "verify", out, "--sample", "3"])
    assert "nothing was sampled: it holds no passages" in done.stdout, done.output


def test_the_bundled_model_of_an_index_is_nobodys_default() -> None:
    """Loaded by its folder: then the library does not say that nobody chose it."""
    assert model_named(BUNDLED_MODEL.name) == str(BUNDLED_MODEL)
    assert model_named("some/model") == "some/model"


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.jsonl", b"{}\n\n{}\n", 2),
        ("a.csv", b'id,text\n1,"x\ny"\n\n2,z\n', 2),
        ("a.jsonl.gz", gzip.compress(b"{}\n{}\n{}", mtime=0), 3),
        ("a.jsonl.gz", b"no gzip", None),
        ("a.parquet", b"no parquet", None),
    ],
)
def test_passages_are_counted(tmp_path: Path, name: str, content: bytes, count: int | None) -> None:
    (tmp_path / name).write_bytes(content)
    assert quick_count(tmp_path / name) == count
    assert quick_count(tmp_path / "absent.csv") is None


@pytest.mark.parametrize(
    ("size", "count"), [("1.5G", 1610612736), ("800 MiB", 838860800), ("7", 7)]
)
def test_sizes(size: str, count: int) -> None:
    assert bytes_of(size) == count


@pytest.mark.parametrize("size", ["", "0", "much", "1.5X", "-1G"])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        bytes_of(size)
