import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from epic_retrieval.errors import InputError, PassageIndexError
from epic_retrieval.index.manifest import (
    MANIFEST,
    DeletedInfo,
    EncoderInfo,
    FileInfo,
    Manifest,
    SearchInfo,
    ShardInfo,
    _checksum,
    check_folder,
    is_index,
    read_manifest,
    read_manifest_file,
)

FILE = FileInfo(7, "0" * 64)
SHARD = ShardInfo(
    "s-00000000000000aa", 5, {"vectors.npy": FILE, "passages.sqlite": FILE, "ids.npy": FILE}
)
SEARCH = SearchInfo("f-0011aabb", "HNSW32", 7, FILE, {"efSearch": 64}, 0.97, 10, 0.95)
FULL = Manifest(
    generation=3,
    count=8,
    dtype="float16",
    encoder=EncoderInfo("é", "f" * 8, 16, "task"),
    shards=(SHARD, replace(SHARD, name="s-00000000000000bb")),
    search=SEARCH,
    deleted=DeletedInfo("d-00112233", 2, FILE),
    created="2026-01-01T00:00:00+00:00",
    updated="2026-01-02T00:00:00+00:00",
    package_version="1",
    corpus="notes \ud800",
    truncated_from=32,
)
FLAT = replace(FULL, count=10, search=None, deleted=None, truncated_from=None)
EMPTY = replace(FLAT, shards=(), count=0)


def write(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("manifest", [FULL, FLAT, EMPTY])
def test_what_is_written_is_read(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path, manifest.to_text())
    assert read_manifest(tmp_path) == manifest
    assert read_manifest_file(tmp_path / MANIFEST).to_text() == manifest.to_text()
    assert is_index(tmp_path)


def test_properties_follow_from_the_rest() -> None:
    assert (FULL.rows, FULL.dimension, FULL.metric) == (10, 16, "cosine")
    assert (FULL.kind, FLAT.kind) == ("HNSW32", "Flat")
    assert set(FULL.files) == {
        *(f"shards/s-00000000000000{end}/{name}" for end in ("aa", "bb") for name in SHARD.files),
        "search/f-0011aabb/index.faiss",
        "deleted/d-00112233.npy",
    }


def test_a_shard_may_stand_twice_but_not_two_by_one_name() -> None:
    twice = replace(FLAT, shards=(SHARD, SHARD))
    assert (twice.rows, len(twice.files)) == (10, 3)
    with pytest.raises(InputError, match="Two different shards"):
        replace(
            FLAT,
            shards=(
                SHARD,
                replace(SHARD, rows=5, files={**SHARD.files, "ids.npy": FileInfo(8, "0" * 64)}),
            ),
        )


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", "s-0000000", "s-0000000g", "S-00000000", "ss-00000000", "s-" + "0" * 33),
        *("../s-00000000", "s-00000000/..", "/s-00000000", "s-00000000\\x", "s-00000000\n"),
        *("s-٠٠٠٠٠٠٠٠", None, 5),
    ],
)
def test_no_name_leads_out_of_the_folder(name: Any) -> None:  # noqa: ANN401 (wrong types too)
    for make in (
        lambda: replace(SHARD, name=name),
        lambda: replace(SEARCH, name=name),
        lambda: DeletedInfo(name, 1, FILE),
    ):
        with pytest.raises(InputError, match="is named"):
            make()


WRONG: list[Callable[[], object]] = [
    lambda: FileInfo(-1, "0" * 64),
    lambda: FileInfo(True, "0" * 64),
    lambda: FileInfo(1, "0" * 63),
    lambda: FileInfo(1, "0" * 64 + "\n"),
    lambda: replace(SHARD, rows=0),
    lambda: replace(SHARD, rows=2**63),
    lambda: replace(SHARD, files={"vectors.npy": FILE}),
    lambda: replace(SHARD, files={**SHARD.files, "../x": FILE}),
    lambda: replace(SHARD, files=dict.fromkeys(SHARD.files, 5)),  # type: ignore[arg-type]
    lambda: replace(SEARCH, factory=""),
    lambda: replace(SEARCH, parameters={"n probe": 1}),
    lambda: replace(SEARCH, parameters={"nprobe": 0}),
    lambda: replace(SEARCH, recall=float("nan")),
    lambda: replace(SEARCH, target=1.5),
    lambda: replace(FULL, generation=0),
    lambda: replace(FULL, count=9),
    lambda: replace(FULL, dtype="float64"),
    lambda: replace(FULL, search=replace(SEARCH, rows=11)),
    lambda: replace(FULL, search={}),  # type: ignore[arg-type]
    lambda: replace(FULL, truncated_from=16),
    lambda: replace(FULL, created=None),  # type: ignore[arg-type]
    lambda: replace(FULL, shards=(1,)),  # type: ignore[arg-type]
    lambda: EncoderInfo("", "f", 1),
    lambda: EncoderInfo("n", "f", 0),
    lambda: EncoderInfo("n", "f", 1, 5),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make", WRONG)
def test_what_does_not_fit_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"expected|only|named|deleted"):
        make()


def test_a_changed_byte_is_found_anywhere(tmp_path: Path) -> None:
    text = FULL.to_text().encode()
    for place in range(0, len(text), 7):
        changed = bytearray(text)
        changed[place] ^= 1
        (tmp_path / MANIFEST).write_bytes(changed)
        try:
            found = read_manifest(tmp_path)
        except PassageIndexError:
            continue
        # Spaces between the parts are not content.
        assert found == FULL


def test_a_shorter_file_is_refused(tmp_path: Path) -> None:
    text = FULL.to_text()
    for size in range(0, len(text) - 1, 7):
        write(tmp_path, text[:size])
        with pytest.raises(PassageIndexError, match=r"damaged|manifest"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("shards",), 5),
        (("shards",), [[]]),
        (("shards", 0, "name"), "../../x"),
        (("shards", 0, "files"), {}),
        (("shards", 0, "files", "ids.npy"), {"bytes": 1}),
        (("shards", 0, "surprise"), 1),
        (("search",), 0),
        (("search", "file"), None),
        (("search", "parameters"), []),
        (("deleted", "name"), "d-00112233/../../x"),
        (("encoder",), None),
        (("encoder", "dimension"), 8),
        (("dimension",), 8),
        (("rows",), 11),
        (("kind",), "Flat"),
        (("surprise",), 1),
        (("count",), 8.0),
    ],
)
def test_content_with_a_right_checksum_is_checked_too(
    tmp_path: Path, place: tuple[Any, ...], value: object
) -> None:
    content = json.loads(FULL.to_text())
    del content["checksum"]
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    content["checksum"] = _checksum(content)
    write(tmp_path, json.dumps(content))
    with pytest.raises(PassageIndexError, match="not as expected"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "written by a newer epic-retrieval.*Upgrade"),
        (1, "version 1;.*Build the index again"),
        (None, "version None"),
        (2.0, "version 2.0"),
        ("2", "version '2'"),
    ],
)
def test_another_format_version_says_what_to_do(
    tmp_path: Path, version: object, message: str
) -> None:
    write(
        tmp_path, json.dumps({"format": "epic-retrieval passage index", "format_version": version})
    )
    with pytest.raises(PassageIndexError, match=message):
        read_manifest(tmp_path)
    assert is_index(tmp_path)


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(PassageIndexError, match="no such folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(PassageIndexError, match=f"no {MANIFEST}"):
        read_manifest(tmp_path)
    for text in ("[]", "{}", '{"format": "other"}', "x", "[" * 100_000):
        write(tmp_path, text)
        assert not is_index(tmp_path)
        with pytest.raises(PassageIndexError, match="manifest"):
            read_manifest(tmp_path)


def test_sizes_are_compared_and_links_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234567")
    info = FileInfo.of(path)
    info.check_size(path)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder-link").symlink_to(tmp_path / "folder")
    check_folder(tmp_path / "folder")
    for bad, message in (("link", "link"), ("folder", "not a file"), ("none", "cannot be read")):
        with pytest.raises(PassageIndexError, match=message):
            info.check_size(tmp_path / bad)
    for bad in ("folder-link", "file", "none"):
        with pytest.raises(PassageIndexError, match=r"link|cannot be read"):
            check_folder(tmp_path / bad)
    os.truncate(path, 6)
    with pytest.raises(PassageIndexError, match="6 bytes, but was built with 7"):
        info.check_size(path)
