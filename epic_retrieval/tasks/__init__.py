"""Tasks: an instruction and a few demonstrations, from code, from files, or built in."""

from epic_retrieval.tasks.library import (
    Source,
    builtin_tasks,
    icl_demonstrations,
    icl_tasks,
    load_task,
    task_source,
)
from epic_retrieval.tasks.selection import Selection
from epic_retrieval.tasks.task import Demonstration, Task

__all__ = [
    "Demonstration",
    "Selection",
    "Source",
    "Task",
    "builtin_tasks",
    "icl_demonstrations",
    "icl_tasks",
    "load_task",
    "task_source",
]
