from pathlib import Path

import pytest

from epic_retrieval.errors import InputError
from epic_retrieval.index import Passage, read_corpus
from epic_retrieval.index._texts import split_text


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
