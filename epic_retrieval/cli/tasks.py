"""`epic tasks`: what tasks there are, and what one of them holds.

Knows nothing of models.
"""

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from epic_retrieval.tasks import Task


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="A built-in task, or the path of a task file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the built-in tasks, or show one task in full."""
    from epic_retrieval.tasks import builtin_tasks, load_task

    if name is not None:
        task = load_task(name)
        typer.echo(_to_json(task.to_dict()) if as_json else _described(task))
    elif as_json:
        typer.echo(_to_json([_row(task) for task in builtin_tasks().values()]))
    else:
        _print_table(list(builtin_tasks().values()))


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _row(task: "Task") -> dict[str, object]:
    from epic_retrieval.tasks import task_source

    return {
        "name": task.name,
        "source": task_source(task.name),
        "demonstrations": len(task.demonstrations),
        "symmetric": task.symmetric,
        "instruction": task.instruction,
    }


def _print_table(known: list["Task"]) -> None:
    """Plain columns: they survive pipes, grep and narrow terminals."""
    rows = [_row(task) for task in known]
    width = max(len(str(row["name"])) for row in rows)
    typer.echo(f"{'TASK':{width}}  SOURCE    DEMOS  KIND        INSTRUCTION")
    for row in rows:
        kind = "symmetric" if row["symmetric"] else "asymmetric"
        typer.echo(
            f"{row['name']:{width}}  {row['source']:8}  {row['demonstrations']:>5}"
            f"  {kind:10}  {row['instruction']}"
        )


def _described(task: "Task") -> str:
    lines = [
        f"name         {task.name}",
        f"instruction  {task.instruction}",
        f"symmetric    {'yes' if task.symmetric else 'no'}",
    ]
    for number, shown in enumerate(task.demonstrations, start=1):
        lines += ["", f"demonstration {number}", *_indented(shown.query), "  ->"]
        lines += _indented(shown.passage)
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
