"""Which instruction and demonstrations a task of mteb is read with.

Knows mteb's names, types and prompts, but no model and no data set.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from epic_retrieval.errors import InputError
from epic_retrieval.tasks import (
    Demonstration,
    Task,
    builtin_tasks,
    icl_demonstrations,
    load_task,
    task_source,
)
from epic_retrieval.tasks.files import SUFFIXES, read_document
from epic_retrieval.tasks.task import located

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

# Query and document are texts of two kinds; everywhere else the prompt goes on both (the paper's
# B.1). Rerankings of the paper's table that are symmetric say so there.
_ASYMMETRIC = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
# Where mteb has no prompt either, in the words of the paper's Table 11.
_BY_TYPE = {
    "Retrieval": "Given a question, retrieve passages that answer the question",
    "Reranking": "Given a question, retrieve passages that answer the question",
    "STS": "Retrieve semantically similar text.",
    "PairClassification": "Retrieve texts that are semantically similar to the given text",
    "Classification": "Classify the given text",
    "Clustering": "Identify the topic or theme of the given texts",
    "Summarization": "Given a summary, retrieve other semantically similar summaries",
}
_ANY_TYPE = "Retrieve semantically similar text."
# What the later versions of a data set are called, and what the paper's table calls it.
_RENAMED = (
    (re.compile(r"\.v\d+$"), ""),
    (re.compile(r"HardNegatives$"), ""),
    (re.compile(r"^CQADupstack\w+Retrieval$"), "CQADupstackRetrieval"),
    (re.compile(r"^ArXivHierarchicalClustering"), "ArxivClustering"),
    (re.compile(r"^SummEvalSummarization$"), "SummEval"),
    (re.compile(r"^Touche2020Retrieval$"), "Touche2020"),
)


def paper_name(name: str) -> str:
    """The name that the paper's tables have for a task of mteb, for example without `.v2`."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class Instructions:
    """Tasks by the names of evaluation tasks, and demonstrations by names of either.

    Attributes:
        tasks: chosen for an evaluation task by its user; they come before everything else.
        found: of local data, where its folder holds a task.
        demonstrations: in place of those that the tasks have. A name is that of the evaluation
            task, or the one it has in the paper's tables, or that of its `Task`.
        without: no task has any.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    found: Mapping[str, Task] = field(default_factory=dict)
    demonstrations: Mapping[str, tuple[Demonstration, ...]] = field(default_factory=dict)
    without: bool = False

    @property
    def have_demonstrations(self) -> bool:
        """Whether any were given."""
        tasks = (*self.tasks.values(), *self.found.values())
        given = any(self.demonstrations.values()) or any(one.demonstrations for one in tasks)
        return given and not self.without

    def check_used(self, names: Sequence[str]) -> None:
        """Raise InputError when tasks were chosen, and none of them for what is evaluated."""
        known = {*names, *map(paper_name, names)}
        if self.tasks and known.isdisjoint(self.tasks):
            raise InputError(
                f"the task file names {', '.join(self.tasks)}, and none of that is evaluated here;"
                f" expected {', '.join(sorted(known))}. To read a set with a task of another name,"
                f" give a file with the line `{min(known)}: my-task.yaml`"
            )

    def task_for(self, metadata: "TaskMetadata") -> Task:
        """What queries of this evaluation task are encoded with."""
        names = (metadata.name, paper_name(metadata.name))
        task = self._chosen(names) or _of_paper(names) or _of_mteb(metadata)
        if self.without:
            return task.without_demonstrations()
        for name in (*names, task.name):
            if name in self.demonstrations:
                return task.with_demonstrations(self.demonstrations[name])
        return task

    def _chosen(self, names: tuple[str, ...]) -> Task | None:
        known = {**self.found, **self.tasks}
        return next((known[name] for name in names if name in known), None)


def _of_paper(names: tuple[str, ...]) -> Task | None:
    for name in names:
        task = builtin_tasks().get(name)
        if task is not None and task_source(name) == "mteb":
            return task
    return None


def _of_mteb(metadata: "TaskMetadata") -> Task:
    given = metadata.prompt
    prompt = str(given.get("query", "")) if isinstance(given, Mapping) else given
    return Task(
        task_name(metadata.name),
        prompt or _BY_TYPE.get(metadata.type, _ANY_TYPE),
        symmetric=metadata.type not in _ASYMMETRIC,
    )


def task_name(name: str) -> str:
    """The name as a `Task` may have it: other characters become `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100] or "task"


def read_tasks(path: str | Path) -> dict[str, Task]:
    """Read which task an evaluation task is read with.

    Args:
        path: a JSON or YAML file: a mapping of names of evaluation tasks to the name of a built-in
            task, the path of a task file (relative to this one), or a whole task; or one task,
            which then stands for the evaluation task of its own name.

    Raises:
        InputError: naming the file and the entry, for whatever cannot be used.
    """
    path = Path(path)
    document = read_document(path)
    with located(str(path)):
        if not isinstance(document, Mapping) or not document:
            raise InputError(
                "expected a mapping of names of evaluation tasks to tasks, such as"
                " `scifact: scientific-claims`"
            )
        if "instruction" in document:
            task = Task.from_dict(document)
            return {task.name: task}
        tasks = {}
        for name, entry in document.items():
            with located(str(name)):
                tasks[str(name)] = _task_of(entry, path.parent)
    return tasks


def _task_of(entry: object, folder: Path) -> Task:
    if isinstance(entry, Mapping):
        return Task.from_dict(entry)
    if not isinstance(entry, str):
        raise InputError(f"got {entry!r}; expected the name of a task, a path, or a task")
    if entry.lower().endswith(SUFFIXES):
        return load_task(folder / entry)
    return load_task(entry)


def read_demonstrations(folder: str | Path) -> dict[str, tuple[Demonstration, ...]]:
    """Read a folder of demonstrations, one file a task.

    Args:
        folder: task files of ours (.yaml, .yml, .json), under the tasks' names; and files as
            bge-en-icl has them, such as `SciFact.json` with a list of `{"query", "response"}`,
            under the names of the files.

    Raises:
        InputError: when there is no such folder or no such file in it, or one cannot be used.
    """
    folder = Path(folder)
    found: dict[str, tuple[Demonstration, ...]] = {}
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            continue
        if isinstance(read_document(path), list):
            name, shown = path.stem, icl_demonstrations(path)
        else:
            task = Task.load(path)
            name, shown = task.name, task.demonstrations
        if name in found:
            raise InputError(f"{path}: demonstrations of {name!r} stand in another file too")
        found[name] = shown
    if not any(found.values()):
        raise InputError(
            f"{folder} is no folder with demonstrations; expected files such as SciFact.json"
            f" ({', '.join(SUFFIXES)})"
        )
    return found
