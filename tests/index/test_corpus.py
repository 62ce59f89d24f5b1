import gzip
import json
import logging
from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, read_corpus

THREE = [
    Passage("a", " One\u2028two, “three” ", "First"),
    Passage("b", 'He said "no",\nand\tleft.', "", {"year": "1999", "lang": "en"}),
    Passage("7", "Seven", "", {"year": "2000", "lang": ""}),
]
JSONL = "\n".join(
    json.dumps(row, ensure_ascii=False)
    for row in [
        {"_id": "a", "title": "First", "text": THREE[0].text},
        {"id": "b", "text": THREE[1].text, "year": "1999", "metadata": {"lang": "en"}},
        {"id": 7, "title": None, "text": "Seven", "metadata": {"year": "2000", "lang": ""}},
    ]
)
CSV = """\
id,title,text,year,lang
a,First," One\u2028two, “three” ",,
b,,"He said ""no"",
and\tleft.",1999,en

7,,Seven,2000,
"""
TSV = """\
id\ttitle\ttext\tyear\tlang
a\tFirst\t One\u2028two, “three” \t\t
b\t\t"He said ""no"",
and\tleft."\t1999\ten
7\t\tSeven\t2000\t
"""


def write(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "JSONL"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_lines(tmp_path: Path, ending: str, mark: str) -> None:
    path = write(tmp_path / f"corpus.{ending}", f"{mark}{JSONL}\n\n")
    assert list(read_corpus(path)) == THREE


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv(tmp_path: Path, ending: str, line_end: str) -> None:
    text = (TSV if ending == "tsv" else CSV).replace("\n", line_end)
    text = text.replace(f'no"",{line_end}', 'no"",\n')
    first, *others = read_corpus(write(tmp_path / f"corpus.{ending}", f"\ufeff{text}"))
    assert first == Passage("a", THREE[0].text, "First", {"year": "", "lang": ""})
    assert others == THREE[1:]


def test_beir_folder_reads_its_corpus_alone(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl.gz", JSONL)
    write(tmp_path / "queries.jsonl", "not a corpus")
    write(tmp_path / "README.md", "# not a passage")
    assert list(read_corpus(tmp_path)) == THREE
    write(tmp_path / "corpus.jsonl", JSONL)
    with pytest.raises(InputError, match=r"both corpus.jsonl and corpus.jsonl.gz"):
        read_corpus(tmp_path)


def test_without_any_id_the_line_is_the_id(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "c.jsonl", '{"text": "x"}\n\n{"text": "y"}')
    assert [p.id for p in read_corpus(jsonl)] == ["1", "3"]
    table = write(tmp_path / "c.csv", 'text\n"two\nlines"\nlast\n')
    assert [(p.id, p.text) for p in read_corpus(table)] == [("2", "two\nlines"), ("4", "last")]


def test_blank_passages_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "c.jsonl", '{"id":"a","text":" "}\n{"id":"b","text":"x"}')
    with caplog.at_level(logging.WARNING):
        assert [p.id for p in read_corpus(path, skip_empty=True)] == ["b"]
    assert "skipped 1 passage " in caplog.text


def test_reads_no_further_than_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", '{"id":"a","text":"x"}\nbroken')
    assert next(read_corpus(path)).id == "a"


def row(**cells: object) -> str:
    return json.dumps({"id": "a", "text": "x", **cells}) + "\n"


BAD_JSONL: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "no passages"),
    ("blank lines", "\n \n", "no passages"),
    ("not JSON", row() + "{oops}\n", "line 2: not valid JSON"),
    ("array", "[\n{}\n]", "line 1: not valid JSON"),
    ("array on one line", '[{"id": "a"}]', "line 1: a JSON list"),
    ("deep", "[" * 200_000, "line 1: not valid JSON"),
    ("NaN", '{"id":"a","text":"x","w":NaN}', "line 1: not valid JSON .*NaN is no JSON number"),
    ("twice", row() + row(id="b") + row(), 'id "a" stands twice, at line 1 and at line 3'),
    ("some ids", row() + '{"text": "y"}', 'line 2: no "_id" or "id", though line 1 has one'),
    ("late ids", '{"text": "y"}\n' + row(), "line 2: an id, though line 1 has none"),
    ("other id", '{"docid": 1, "text": "y"}', 'line 1: no "_id" or "id", but there is "docid"'),
    ("blank id", row(id=" "), "line 1: The id is blank"),
    ("float id", row(id=1.5), r'line 1: "id" is 1.5 \(float\)'),
    ("bool id", row(id=True), r'line 1: "id" is True \(bool\)'),
    ("no text", '{"id": "a", "body": "x"}', 'line 1: no "text"; there is "id", "body"'),
    ("number", row(text=5), r'line 1: "text" is 5 \(int\): expected text'),
    ("null", row(text=None), r'line 1: "text" is None'),
    ("title", row(title=["x"]), r'line 1: "title" is .*list'),
    ("blank", row(text=" "), 'line 1: Passage "a" has neither .* pass skip_empty=True'),
    ("NUL", row(text="x\0"), "line 1: text holds a NUL character at position 1"),
    ("raw NUL", b'{"id":"a",\n"text":"\0"}', "line 1: not valid JSON|line 2: a NUL byte"),
    ("surrogate", row(text="\ud83d"), "line 1: text holds half a surrogate pair"),
    ("metadata", row(n=1, metadata={"n": 2}), '"n" stands both beside and inside "metadata"'),
    ("bytes", row().encode() + b'{"id":"\xff"}', "line 2: byte 0xFF at offset 32 is not UTF-8"),
    ("UTF-16", row().encode("utf-16"), "line 1: byte 0xFF at offset 0 is not UTF-8"),
    ("UTF-16 bare", row().encode("utf-16-le"), "line 1: a NUL byte at offset 1"),
    ("1 MB", row(text="x" * 10**6), r"passage \"a\" has 1,000,000 characters.*100,000.*max_chars"),
    ("huge line", b"x" * (17 * 2**20), "line 1: longer than 16,777,216 bytes"),
]


@pytest.mark.parametrize(
    ("data", "message"), [b[1:] for b in BAD_JSONL], ids=[b[0] for b in BAD_JSONL]
)
def test_bad_json_lines(tmp_path: Path, data: str | bytes, message: str) -> None:
    path = write(tmp_path / "c.jsonl", data)
    with pytest.raises(InputError, match=message) as caught:
        list(read_corpus(path))
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 400


BAD_CSV: list[tuple[str, str, str]] = [
    ("empty", "", "no passages"),
    ("header only", "id,text\n", "no passages"),
    ("no text", "id,Text\na,x\n", 'line 1: the header has no column "text"; .* id, Text'),
    ("column twice", "id,text,text\na,x,y\n", 'line 1: the header has the column "text" twice'),
    ("too few", "id,text\n\na\n", "line 3: 1 fields, but the header has 2"),
    ("too many", 'id,text\n"a\na",x\nb,y,z\n', "line 4: 3 fields, but the header has 2"),
    ("quote", 'id,text\na,"x" y\n', "line 2: .* Quotes inside a quoted field are doubled"),
    ("open quote", 'id,text\na,x\nb,"y\nc,z\n', "line 3: unexpected end of data"),
    ("long field", f'id,text\na,"{"x" * 140_000}\n', "line 2: field larger than field limit"),
    ("no id", "ID,text\na,x\n", 'line 2: no "_id" or "id", but there is "ID"'),
    ("twice", "id,text\na,x\na,y\n", 'id "a" stands twice, at line 2 and at line 3'),
    ("NUL", "id,text\na,x\0\n", "line 2: a NUL byte at offset 11"),
]


@pytest.mark.parametrize(("data", "message"), [b[1:] for b in BAD_CSV], ids=[b[0] for b in BAD_CSV])
def test_bad_csv(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_corpus(write(tmp_path / "c.csv", data)))


def test_max_chars_opens_the_way_for_long_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", f"id,text\na,{'x' * 200_000}\n")
    (passage,) = read_corpus(path, max_chars=200_000)
    assert len(passage.text) == 200_000
    with pytest.raises(InputError, match="max_chars is 0"):
        read_corpus(path, max_chars=0)


def test_bad_paths_raise_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.jsonl: cannot be read \(No such file"):
        read_corpus(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"c.json: unknown kind of file. Expected one of .jsonl"):
        read_corpus(write(tmp_path / "c.json", "[]"))
    with pytest.raises(InputError, match="cannot be read"):
        read_corpus(tmp_path / "c.json" / "below.jsonl")


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress((JSONL + "\n").encode())
    for raw in (whole[:-20], b"no gzip", whole[:40] + bytes(20) + whole[60:]):
        (tmp_path / "c.jsonl.gz").write_bytes(raw)
        with pytest.raises(InputError, match=r"c.jsonl.gz: the gzip data is damaged or cut short"):
            list(read_corpus(tmp_path / "c.jsonl.gz"))


def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", JSONL)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            list(read_corpus(path))
    else:
        pytest.skip("this user may read every file")


TYPES = {"year": "int", "price": "float", "free": "bool", "code": "text"}


def test_cells_become_what_their_types_say(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.csv",
        "id,text,year,price,free,code\na,x,1999, 2.50 ,TRUE,007\nb,y,-5,1e3,no,\nc,z,,,,8\n",
    )
    assert [passage.metadata for passage in read_corpus(path, types=TYPES)] == [
        {"year": 1999, "price": 2.5, "free": True, "code": "007"},
        {"year": -5, "price": 1000.0, "free": False, "code": ""},
        {"year": None, "price": None, "free": None, "code": "8"},
    ]
    path = write(tmp_path / "c.jsonl", '{"text": "x", "metadata": {"year": "1", "price": 2}}\n')
    (passage,) = read_corpus(path, types=TYPES)
    assert passage.metadata == {"year": 1, "price": 2}


@pytest.mark.parametrize(
    ("cell", "kind", "message"),
    [
        ("1.5", "int", "line 2: \"n\" is '1.5': expected a whole number, as its type int says"),
        ("1_000", "int", "expected a whole number"),
        ("nan", "float", "expected a number"),
        ("1e999", "float", "expected a number"),
        ("maybe", "bool", "expected true or false"),
        ("1", "date", "'date': expected one of int, float, bool, text"),
    ],
)
def test_cells_that_are_not_of_their_type(
    tmp_path: Path, cell: str, kind: str, message: str
) -> None:
    path = write(tmp_path / "c.csv", f"id,text,n\na,x,{cell}\n")
    with pytest.raises(InputError, match=message):
        list(read_corpus(path, types={"n": kind}))


def test_types_of_columns_that_have_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "c.csv", "id,text,n\na,x,1\n")
    with pytest.raises(InputError, match='"m", which is not there; there are id, text, n'):
        list(read_corpus(path, types={"m": "int"}))
    with pytest.raises(InputError, match='"text" cannot have a type'):
        read_corpus(path, types={"text": "int"})
    path = write(tmp_path / "c.jsonl", '{"text": "x", "n": "1"}\n{"text": "y", "m": "2"}\n')
    assert [one.metadata for one in read_corpus(path, types={"m": "int"})] == [{"n": "1"}, {"m": 2}]
    assert not caplog.text
    assert len(list(read_corpus(path, types={"o": "int"}))) == 2
    assert 'no row has the column "o"' in caplog.text
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts" / "a.txt", "x")
    with pytest.raises(InputError, match="have no columns"):
        read_corpus(tmp_path / "texts", types={"m": "int"})
