"""The README.md of an exported checkpoint: what it is, how to load it, how it was trained.

Everything comes in as data: the `training` entry of `epic_config.json` with the mix file that it
names, if that is still there, and, where the checkpoint's folder has them,

- `run.json`: any JSON object about the run; `license` and `base_model` stand in the head of the
  card, too;
- `scores.json` (or `development.json`): `{"mean": {...}, "datasets": [{...}]}` as training writes
  it, a list of objects, `{set: {metric: score}}` or `{set: score}`.

Absolute paths lose their folders: they are nobody's business. Knows nothing of weights.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epic_retrieval.checkpoint_config import CONFIG_NAME, EpicConfig
from epic_retrieval.checkpoint_foreign import read_json
from epic_retrieval.errors import InputError
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks import Task
from epic_retrieval.tasks.files import read_document
from epic_training.export_markdown import as_table, as_yaml, cell, without_folders

RUN_NAME = "run.json"
SCORES_NAMES = ("scores.json", "development.json")
_LICENCE = re.compile(r"^license:\s*(\S.*?)\s*$", re.MULTILINE)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BASE_KEYS = ("base_model", "base")
_DATA_KEYS = ("datasets", "data")
_UNKNOWN = "Nothing is recorded."


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
    run = _read_run(source)
    base = _base(source, run, config)
    stated = licence or run.get("license") or _licence_of(source)
    parts = [
        _head(stated, base, sentence_transformers=query_task is not None),
        f"# {name}\n\n{_introduction(config, query_task)}",
        f"## Use\n\n{_use(name, config, query_task)}",
        f"## Training\n\n{_training(base, run, config.training)}",
        f"## Data\n\n{_data(config.training, run)}",
        f"## Scores\n\n{_scores(source)}",
        f"## Licence\n\n{_licence_line(stated, base)}",
    ]
    write_atomically(folder / "README.md", ("\n\n".join(parts) + "\n").encode())
    for file in (RUN_NAME, *SCORES_NAMES):
        if (source / file).is_file():
            write_atomically(folder / file, (source / file).read_bytes())


def _read_run(source: Path) -> dict[str, Any]:
    run = read_json(source / RUN_NAME)
    if not isinstance(run, dict):
        raise InputError(f"{source / RUN_NAME} is a {type(run).__name__}; expected a JSON object")
    return run


def _base(source: Path, run: Mapping[str, Any], config: EpicConfig) -> str | None:
    """The base model's hub id or, where it is a folder, its last name: the path stays private."""
    # A merged checkpoint names its base no longer; the folder that it came from does.
    adapter = read_json(source / "adapter_config.json").get("base_model_name_or_path")
    before = read_json(source / CONFIG_NAME).get("base_model")
    named = [found[key] for found in (run, config.training) for key in _BASE_KEYS if key in found]
    text = next((str(one) for one in (*named, config.base_model, before, adapter) if one), None)
    if text is None or (_HUB_ID.fullmatch(text) and not Path(text).exists()):
        return text
    return "epic-mini" if text == "bundled" else Path(text).name


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
    return f"---\n{as_yaml(entries)}---"


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
    left_out = {"license", *_BASE_KEYS, *_DATA_KEYS}
    lines = [f"- base model: {base}"] if base else []
    lines += [
        f"- {key}: {cell(value)}"
        for key, value in run.items()
        if key not in left_out and value is not None
    ]
    # A path to data says nothing elsewhere, and what it led to has a section of its own.
    settings = {key: value for key, value in training.items() if key not in {"mix", *_DATA_KEYS}}
    if settings:
        lines += ["", "The configuration:", "", f"```yaml\n{as_yaml(without_folders(settings))}```"]
    return "\n".join(lines).strip() or _UNKNOWN


def _data(training: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Names of data sets, or a table of their settings."""
    found = [known[key] for known in (training, run) for key in _DATA_KEYS if key in known]
    data = next((one for one in (*found, _mixed(training)) if isinstance(one, dict | list)), None)
    if not data:
        return _UNKNOWN
    data = without_folders(data)
    if isinstance(data, dict):
        rows = [
            {"data set": name, **(settings if isinstance(settings, dict) else {"": settings})}
            for name, settings in data.items()
        ]
        return as_table([{key: row[key] for key in row if key != "path"} for row in rows])
    if all(isinstance(row, dict) for row in data):
        return as_table(data)
    return "\n".join(f"- {cell(row)}" for row in data)


def _mixed(training: Mapping[str, Any]) -> object:
    """The `datasets` of the mix file that a run was trained on, if that still lies there."""
    path = Path(str(training.get("mix") or ""))
    document = read_document(path) if path.is_file() else None
    return document.get("datasets") if isinstance(document, dict) else None


def _scores(source: Path) -> str:
    path = next((source / one for one in SCORES_NAMES if (source / one).is_file()), None)
    if path is None:
        return "None are recorded."
    scores: Any = read_json(path)
    if isinstance(scores, dict) and isinstance(scores.get("datasets"), list):
        mean = scores.get("mean")
        scores = scores["datasets"] + ([{"name": "mean", **mean}] if mean else [])
    elif isinstance(scores, dict):
        scores = [
            {"name": name, **(value if isinstance(value, dict) else {"score": value})}
            for name, value in scores.items()
        ]
    if not isinstance(scores, Sequence) or not all(isinstance(row, dict) for row in scores):
        raise InputError(
            f"{path}: expected what epic train writes, a list of objects,"
            " {set: {metric: score}} or {set: score}"
        )
    return as_table(scores) if scores else "None are recorded."


def _licence_line(licence: str | None, base: str | None) -> str:
    bound = f" The terms of the base model, {base}, apply too." if base else ""
    if licence:
        return f"{licence}.{bound}"
    return f"Not stated: ask whoever gave you this model before you use or share it.{bound}"
