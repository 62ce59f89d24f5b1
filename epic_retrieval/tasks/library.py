"""The built-in tasks, and tasks by name or file.

Three sources, told apart by `task_source`:
- `epic`: everyday tasks with five demonstrations each, written for this project (`web-search`);
- `mteb`: the instructions of the paper's Table 11 under the benchmark's own names (`SciFact`);
- `training`: those of its Table 7 as `train-<data set>` (`train-hotpotqa`); where the table gives a
  data set two instructions, the second one's name ends in `-2`.

Knows nothing of models; the tasks themselves are data files of this package.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from epic_retrieval.errors import InputError
from epic_retrieval.tasks.files import SUFFIXES, parse_document, read_document
from epic_retrieval.tasks.task import Demonstration, Task, check_keys, located

Source = Literal["epic", "mteb", "training"]
_PAPER_SOURCES: tuple[Source, ...] = ("mteb", "training")


def builtin_tasks() -> Mapping[str, Task]:
    """All built-in tasks by name, read-only, read from disk once: `epic`, `mteb`, `training`."""
    return _library()[0]


def task_source(name: str) -> Source:
    """Where the built-in task of this name (in any case) comes from.

    Raises:
        InputError: for an unknown name, with those that come close.
    """
    return _library()[1][_builtin_name(name)]


def load_task(name_or_path: str | Path) -> Task:
    """A built-in task by name, in any case, or a task of one's own by the path of its file.

    A `Path`, a text that ends in `.json`, `.yaml` or `.yml`, and one with a slash are paths.

    Raises:
        InputError: for an unknown name, with those that come close; for a file that cannot be used.
    """
    if isinstance(name_or_path, Path) or _looks_like_path(name_or_path):
        return Task.load(name_or_path)
    return builtin_tasks()[_builtin_name(name_or_path)]


def icl_demonstrations(path: str | Path) -> tuple[Demonstration, ...]:
    """Read one of bge-en-icl's demonstration files: a JSON list of `{"query", "response"}`.

    Raises:
        InputError: naming the file and the entry, for whatever cannot be used.
    """
    rows = read_document(Path(path))
    with located(str(path)):
        if not isinstance(rows, list) or not rows:
            raise InputError('expected a list of entries with the keys "query" and "response"')
        demonstrations = []
        for number, row in enumerate(rows, start=1):
            with located(f"entry {number}"):
                entry = check_keys(row, required=("query", "response"))
                pair = {"query": entry["query"], "passage": entry["response"]}
                demonstrations.append(Demonstration.from_dict(pair))
    return tuple(demonstrations)


def icl_tasks(folder: str | Path) -> dict[str, Task]:
    """Attach a folder of bge-en-icl's demonstration files to the MTEB tasks of the same names.

    Args:
        folder: holds files such as `SciFact.json`; other endings are left alone.

    Returns:
        The built-in task with the file's demonstrations for each file, sorted by name.

    Raises:
        InputError: when there is no such folder or no file in it, a file's name is no MTEB task,
            or a file cannot be used.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise InputError(
            f"{folder} is no folder with .json files; expected some such as SciFact.json"
        )
    tasks = {}
    for path in paths:
        with located(str(path)):
            task = builtin_tasks()[_builtin_name(path.stem)]
            if task_source(task.name) != "mteb":
                raise InputError(f"{task.name!r} is not an MTEB task; rename or remove the file")
        demonstrations = icl_demonstrations(path)
        with located(str(path)):
            tasks[task.name] = task.with_demonstrations(demonstrations)
    return tasks


def _looks_like_path(text: str) -> bool:
    return text.lower().endswith(SUFFIXES) or "/" in text or "\\" in text


def _builtin_name(name: str) -> str:
    """The built-in name as it is written."""
    written = {known.casefold(): known for known in builtin_tasks()}
    found = written.get(name.casefold())
    if found is None:
        close = [written[key] for key in get_close_matches(name.casefold(), written)]
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        raise InputError(
            f"there is no built-in task {name!r}{hint} `epic tasks` lists them all, and a task file"
            f" ends in {', '.join(SUFFIXES)}"
        )
    return found


@cache
def _library() -> tuple[Mapping[str, Task], Mapping[str, Source]]:
    tasks: dict[str, Task] = {}
    sources: dict[str, Source] = {}
    for source, task in _read_all(files("epic_retrieval") / "data" / "tasks"):
        tasks[task.name] = task
        sources[task.name] = source
    return MappingProxyType(tasks), MappingProxyType(sources)


def _read_all(folder: Traversable) -> Iterator[tuple[Source, Task]]:
    """One task per file of our own; a list of tasks per table of the paper."""
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.name.endswith(".yaml"):
            yield "epic", Task.from_dict(_document(entry))
    for source in _PAPER_SOURCES:
        for row in _document(folder / "paper" / f"{source}.yaml"):
            yield source, Task.from_dict(row)


def _document(entry: Traversable) -> Any:  # noqa: ANN401 (from_dict checks what it is)
    return parse_document(entry.read_bytes(), ".yaml")
