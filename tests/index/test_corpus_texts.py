from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, read_corpus
from epic_retrieval.index._texts import split_text
from epic_retrieval.index.passage import JSON


def write(root: Path, **files: str | bytes) -> Path:
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def test_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        b_txt="\ufeff\n  Text.\n",
        a__c_md="intro\n```sh\n# comment\n```\n## The *title* ##\r\n\r\nBody",
        a_md="No heading, #hashtag\n#nor this",
        a__image_png=b"\xff",
        _git__x_txt="hidden",
        sub___hidden_md="hidden",
    )
    assert list(read_corpus(tmp_path)) == [
        Passage("a.md", "No heading, #hashtag\n#nor this", "", {"path": "a.md"}),
        Passage(
            "a/c.md",
            "intro\n```sh\n# comment\n```\n## The *title* ##\r\n\r\nBody",
            "The *title*",
            {"path": "a/c.md"},
        ),
        Passage("b.txt", "  Text.", "", {"path": "b.txt"}),
    ]


def test_long_files_are_split(tmp_path: Path) -> None:
    write(tmp_path, long_md="# Title\n\nOne.\n\nTwo two.\n\nThree three three.")
    assert list(read_corpus(tmp_path, passage_chars=18)) == [
        Passage("long.md#1", "# Title\n\nOne.", "Title", {"path": "long.md", "part": 1}),
        Passage("long.md#2", "Two two.", "Title", {"path": "long.md", "part": 2}),
        Passage("long.md#3", "Three three three.", "Title", {"path": "long.md", "part": 3}),
    ]


def test_front_matter_becomes_title_and_metadata(tmp_path: Path) -> None:
    head = "---\ntitle: 'On: cats'\ndate: 2024-05-06\ntags: [a, 2, {b: c}]\ndraft: false\n"
    head += "path: /elsewhere\nnested: {x: 1}\nempty:\nscore: .nan\n1: one\n# comment\n---\n"
    write(
        tmp_path,
        a_md=f"{head}\n# Heading\n\nBody.\n\n---\nMore.",
        b_md="\ufeff---\r\nlang: de\r\n---\r\n# Heading\r\nBody.",
        c_txt="---\nlang: de\n---\nBody.",
    )
    metadata: dict[str, JSON] = {
        "date": "2024-05-06",
        "tags": ["a", 2],
        "draft": False,
        "path": "a.md",
    }
    body = "# Heading\n\nBody.\n\n---\nMore."
    assert list(read_corpus(tmp_path)) == [
        Passage("a.md", body, "On: cats", metadata),
        Passage("b.md", "# Heading\r\nBody.", "Heading", {"lang": "de", "path": "b.md"}),
        Passage("c.txt", "---\nlang: de\n---\nBody.", "", {"path": "c.txt"}),
    ]
    first, second, *_ = read_corpus(tmp_path, passage_chars=18)
    assert (first.id, first.title, first.metadata) == ("a.md#1", "On: cats", metadata | {"part": 1})
    assert second.metadata == metadata | {"part": 2}


@pytest.mark.parametrize(
    "text",
    [
        "---\nA line, then another.\n---\nBody.",
        "---\nkey: [open\n---\nBody.",
        "---\ndate: 2024-13-45\n---\nBody.",
        "---\nkey: no end\nBody.",
        "---\n---\nBody.",
        "Text first.\n---\nkey: value\n---",
        "----\nkey: value\n----\nBody.",
    ],
)
def test_what_is_no_front_matter_stays_text(tmp_path: Path, text: str) -> None:
    write(tmp_path, a_md=text)
    assert list(read_corpus(tmp_path)) == [Passage("a.md", text, "", {"path": "a.md"})]


def test_front_matter_that_cannot_be_read_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, a_md="---\nkey: [open\n---\nBody.", b_md="---\nA line.\n---\nBody.")
    assert len(list(read_corpus(tmp_path))) == 2
    (message,) = caplog.messages
    assert "a.md: what stands between its lines of ---" in message
    assert "expected ',' or ']'" in message


def test_a_file_of_front_matter_alone_has_no_text(tmp_path: Path) -> None:
    write(tmp_path, a_md="---\ntitle: Alone\n---\n", b_md="Text.")
    with pytest.raises(InputError, match="the file has no text"):
        list(read_corpus(tmp_path))
    assert [passage.id for passage in read_corpus(tmp_path, skip_empty=True)] == ["b.md"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aaaa\nbbbb\ncccc", ["aaaa\nbbbb", "cccc"]),
        ("One two. Three", ["One two.", "Three"]),
        ("aaa bbb ccc ddd", ["aaa bbb", "ccc ddd"]),
        ("x" * 25, ["x" * 10, "x" * 10, "x" * 5]),
        ("一二三四五六。七八九十", ["一二三四五六。", "七八九十"]),
        ("a\r\n \r\nb\n\n\n  c", ["a\r\n \r\nb", "  c"]),
        ("\n\n \n", []),
    ],
)
def test_split(text: str, parts: list[str]) -> None:
    assert list(split_text(text, 10)) == parts


@pytest.mark.parametrize("size", [1, 7, 40, 300])
def test_split_loses_white_space_alone(size: int) -> None:
    text = "".join(f"Word{n}{' ' if n % 7 else '. ' if n % 3 else chr(10) * 2}" for n in range(400))
    parts = list(split_text(text, size))
    assert max(map(len, parts)) <= size
    assert "".join("".join(parts).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no .txt or .md file, and no corpus.jsonl"),
        ({"a_txt": "x", "b_md": " \n"}, "b.md: the file has no text. Remove it"),
        ({"a_txt": b"ok\nno \xe9"}, "a.txt, line 2: byte 0xE9 at offset 6 is not UTF-8"),
        ({"a_txt": b"ok\nno \0"}, "a.txt, line 2: a NUL byte at offset 6"),
    ],
)
def test_bad_folders(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_corpus(write(tmp_path, **files)))


def test_blank_files_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, a_txt="x", b_md="")
    assert [p.id for p in read_corpus(tmp_path, skip_empty=True)] == ["a.txt"]
