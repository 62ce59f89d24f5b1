"""The README.md of an exported checkpoint: what it is, how to load it, how it was trained.

Everything comes in as data: the `training` entry of `epic_config.json`, and, where the checkpoint's
folder has them,

- `run.json`: any JSON object about the run (commit, command, hardware, seconds); `license` and
  `base_model` stand in the head of the card, too;
- `scores.json` (or `development.json`): `{set: score}`, `{set: {metric: score}}` or a list of
  objects, one a row.

Knows nothing of weights.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from epic_retrieval.checkpoint_config import EpicConfig
from epic_retrieval.checkpoint_foreign import read_json
from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks import Task

RUN_NAME = "run.json"
SCORES_NAMES = ("scores.json", "development.json")
_LICENCE = re.compile(r"^license:\s*(\S.*?)\s*$", re.MULTILINE)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DATA_KEYS = ("datasets", "data")


def write_card(
    folder: Path,
    source: Path,
    *,
    name: str,
    config: EpicConfig,
    query_task: Task | None = None,
    licence: str | None = None,
) -> None:
    """Write `README.md` into `folder`, and copies of the files that it was made from.

    Args:
        folder: of the exported checkpoint.
        source: the folder that it was exported from, with `run.json` and scores.
        name: what the model is called.
        config: of the checkpoint.
        query_task: for the sentence-transformers layout, the task of its query prompt.
        licence: an identifier such as "apache-2.0"; None takes `license` of `run.json`, else of the
            head of the source's README.md.

    Raises:
        InputError: `run.json` or the scores are not as described.
        CheckpointError: they are not JSON.
    """
    run = _run(source)
    base = _base(source, run, config)
    stated = licence or run.get("license") or _licence_of(source)
    training = dict(config.training)
    data = next((training.pop(key) for key in _DATA_KEYS if training.get(key)), None)
    data = data or next((run[key] for key in _DATA_KEYS if run.get(key)), None)
    parts = [
        _head(stated, base, sentence_transformers=query_task is not None),
        f"# {name}\n\n{_introduction(config, query_task)}",
        f"## Use\n\n{_use(name, config, query_task)}",
        f"## Training\n\n{_training(base, run, training)}",
        f"## Data\n\n{_data(data)}",
        f"## Scores\n\n{_scores(source)}",
        f"## Licence\n\n{_licence_line(stated, base)}",
    ]
    write_atomically(folder / "README.md", ("\n\n".join(parts) + "\n").encode())
    for file in (RUN_NAME, *SCORES_NAMES):
        if (source / file).is_file():
            write_atomically(folder / file, (source / file).read_bytes())


def _run(source: Path) -> dict[str, Any]:
    run = read_json(source / RUN_NAME)
    if not isinstance(run, dict):
        raise InputError(f"{source / RUN_NAME} is a {type(run).__name__}; expected a JSON object")
    return run


def _base(source: Path, run: Mapping[str, Any], config: EpicConfig) -> str | None:
    """The base model's hub id or, where it is a folder, its last name: the path stays private."""
    named = run.get("base_model") or config.training.get("base_model") or config.base_model
    if not named:
        # A merged checkpoint no longer names it in its own configuration.
        named = read_json(source / "epic_config.json").get("base_model") or read_json(
            source / "adapter_config.json"
        ).get("base_model_name_or_path")
    if not named:
        return None
    text = str(named)
    return text if _HUB_ID.fullmatch(text) and not Path(text).exists() else Path(text).name


def _licence_of(source: Path) -> str | None:
    """`license` in the head of the source's own card."""
    card = source / "README.md"
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    found = _LICENCE.search(head) if head.startswith("---") else None
    return found.group(1) if found else None


def _head(licence: str | None, base: str | None, *, sentence_transformers: bool) -> str:
    """The YAML that the hub reads."""
    entries: dict[str, Any] = {}
    if licence:
        entries["license"] = str(licence)
    if base and _HUB_ID.fullmatch(base):
        entries["base_model"] = base
    entries["pipeline_tag"] = "feature-extraction"
    entries["tags"] = ["epic-retrieval", "feature-extraction"]
    if sentence_transformers:
        entries["library_name"] = "sentence-transformers"
        entries["tags"].append("sentence-transformers")
    return f"---\n{_yaml(entries)}---"


def _introduction(config: EpicConfig, query_task: Task | None) -> str:
    if query_task is not None:
        return (
            "A text encoder trained with epic-retrieval, in the layout of sentence-transformers:"
            " queries get an\ninstruction, and no demonstrations. The EPIC layout of the same model"
            " reads those as well."
        )
    modes = ", ".join(f"`{mode}`" for mode in config.modes)
    return (
        "A text encoder trained with epic-retrieval (EPIC: demonstrations of a task enter the"
        f" prompt as vectors).\nTrained for the modes {modes}, the best first; template"
        f" `{config.template.name}`; texts up to {config.max_length} tokens."
    )


def _use(name: str, config: EpicConfig, query_task: Task | None) -> str:
    if query_task is None:
        code = f"""from epic_retrieval import EpicEncoder

encoder = EpicEncoder.from_pretrained("{name}")  # this folder, or owner/name on the hub
queries = encoder.encode_queries(["..."], task="web-search")
passages = encoder.encode_passages(["..."])
scores = queries @ passages.T"""
        return f"```python\n{code}\n```"
    code = f"""import torch
from sentence_transformers import SentenceTransformer

# this folder, or owner/name on the hub; without the dtype, that of the weights is used
model = SentenceTransformer("{name}", model_kwargs={{"dtype": torch.float32}})
queries = model.encode_query(["..."])
passages = model.encode_document(["..."])
scores = model.similarity(queries, passages)"""
    sides = "queries and passages" if query_task.symmetric else "queries"
    return (
        f"```python\n{code}\n```\n\nNeeds sentence-transformers 6 or newer. The instruction before"
        f" {sides}: {query_task.instruction}\n\nTexts are cut at {config.max_length} tokens, the"
        " prompt not counted; use `encode_query` and `encode_document`\n(or"
        ' `encode(..., prompt_name="query")`), since `encode` alone knows one limit only.'
    )


def _training(base: str | None, run: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in run.items() if key not in ("license", *_DATA_KEYS)}
    lines = [f"- base model: {base}"] if base else []
    lines += [f"- {key}: {_cell(value)}" for key, value in shown.items() if key != "base_model"]
    if training:
        lines += ["", "The configuration:", "", f"```yaml\n{_yaml(training)}```"]
    return "\n".join(lines).strip() or "Nothing is recorded."


def _data(data: object) -> str:
    """Names of data sets, or a table of their settings."""
    if not data:
        return "Nothing is recorded."
    if isinstance(data, Mapping):
        if not all(isinstance(settings, Mapping) for settings in data.values()):
            return f"```yaml\n{_yaml(data)}```"
        return _table([{"data set": name, **settings} for name, settings in data.items()])
    if isinstance(data, Sequence) and not isinstance(data, str):
        if all(isinstance(row, Mapping) for row in data):
            return _table(data)
        return "\n".join(f"- {_cell(row)}" for row in data)
    return str(data)


def _scores(source: Path) -> str:
    path = next((source / one for one in SCORES_NAMES if (source / one).is_file()), None)
    if path is None:
        return "None are recorded."
    scores = read_json(path)
    if isinstance(scores, dict):
        scores = [
            {"set": name, **(value if isinstance(value, dict) else {"score": value})}
            for name, value in scores.items()
        ]
    if not isinstance(scores, list) or not all(isinstance(row, dict) for row in scores):
        raise InputError(
            f"{path}: expected {{set: score}}, {{set: {{metric: score}}}} or a list of objects"
        )
    return _table(scores) if scores else "None are recorded."


def _licence_line(licence: str | None, base: str | None) -> str:
    bound = f" The terms of the base model, {base}, apply too." if base else ""
    if licence:
        return f"{licence}.{bound}"
    return f"Not stated: ask whoever gave you this model before you use or share it.{bound}"


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown; a column for each key of any row."""
    known = list(rows)
    columns = list(dict.fromkeys(key for row in known for key in row))
    lines = ["| " + " | ".join(_cell(column) for column in columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    lines += [
        "| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in known
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """One line that does not break a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(_cell(item) for item in value)
    else:
        text = str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
