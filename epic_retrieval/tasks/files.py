"""JSON and YAML files by their ending: read strictly, written completely or not at all.

Knows nothing of tasks: what comes out is plain dicts, lists and scalars.
"""

import json
import os
import secrets
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

import yaml

from epic_retrieval.errors import InputError

SUFFIXES = (".json", ".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key given twice is an error: a forgotten `-` would lose a text."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        _refuse_repeats(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, but a text of several lines is written as a block, as a person would."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    if "\x85" in text:  # YAML's other line break, which only double quotes keep
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read_document(path: Path) -> object:
    """Parse a JSON or YAML file (UTF-8, with or without a byte order mark).

    Raises:
        InputError: naming the file, when its ending is another, it cannot be read, is not UTF-8,
            does not parse, or gives a key twice in one mapping.
    """
    _check_suffix(path)
    try:
        return parse_document(path.read_bytes(), path.suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__


def parse_document(content: bytes, suffix: str) -> object:
    """Parse the bytes of a file with the ending `suffix` (one of `SUFFIXES`, any case)."""
    try:
        text = content.decode("utf-8-sig")
        if suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_object)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (_Loader is a SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if suffix.lower() == ".json" else "YAML"
        reason = " ".join(str(error).split())
        raise InputError(f"not valid {kind}: {reason}; correct the file") from error


def write_document(path: Path, document: object) -> None:
    """Write plain data as JSON or YAML. A reader sees the old file or the new one, never a part.

    Raises:
        InputError: for another ending, or a folder that does not exist.
        OSError: when the disk refuses.
    """
    _check_suffix(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it first")
    if path.suffix.lower() == ".json":
        text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    else:
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=88)
    # Beside the target, so that the replacement stays on one file system; opened as any file is,
    # so that the umask applies.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(text.encode("utf-8"))
        os.replace(part, path)  # noqa: PTH105 (one word for what happens)
    finally:
        part.unlink(missing_ok=True)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}; rename it")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    _refuse_repeats(key for key, _ in pairs)
    return dict(pairs)


def _refuse_repeats(keys: Iterable[str]) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"the key {key!r} stands {count} times in one mapping")
