"""How long a task's prompt is as text and as vectors (the paper's Figure 3d), and what it occupies.

Needs a tokenizer and a model's shape, never its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Prompt, Vectors, passage_prompt, query_prompt
from epic_retrieval.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from epic_retrieval.checkpoint_config import EpicConfig
    from epic_retrieval.tokenization import TextTokenizer


@dataclass(frozen=True)
class KeyValueShape:
    """What a model keeps for every position of a prompt: layers x key-value heads x head size."""

    layers: int
    heads: int
    size: int

    def bytes_per_position(self, element: int = 2) -> int:
        """Bytes of keys and values; `element`: of one number, 2 in half precision."""
        return 2 * self.layers * self.heads * self.size * element


SHAPES: Mapping[str, KeyValueShape] = MappingProxyType(
    {
        "mistral-7b": KeyValueShape(32, 8, 128),
        "llama-3.1-8b": KeyValueShape(32, 8, 128),
        "qwen2.5-7b": KeyValueShape(28, 4, 128),
        "qwen3-0.6b": KeyValueShape(28, 8, 128),
    }
)


@dataclass(frozen=True)
class PromptSize:
    """Positions that a task's prompt takes, the beginning token included.

    Attributes:
        task: its name.
        demonstrations: how many.
        none: with the instruction alone.
        text: with demonstrations as text; `none` where there are none.
        epic: with demonstrations as vectors; None where the checkpoint learned its vectors.
        query: mean tokens of a query, end token included; None without queries.
    """

    task: str
    demonstrations: int
    none: int
    text: int
    epic: int | None
    query: float | None = None


def prompt_size(
    tokenizer: "TextTokenizer", config: "EpicConfig", task: Task, queries: Sequence[str] = ()
) -> PromptSize:
    """Count a prompt's positions in every mode, as `EpicEncoder.prepare` does without a model.

    Args:
        tokenizer: see `load_tokenizer`.
        config: the same.
        task: instruction and demonstrations.
        queries: texts whose mean length is of interest.

    Raises:
        InputError: a text that cannot be tokenised.
    """
    none = _length(tokenizer, query_prompt(config.template, task, "none"))
    size = PromptSize(task.name, len(task.demonstrations), none, none, none)
    if queries:
        wording = query_prompt(config.template, task, "none")
        rows = tokenizer.text_ids(queries, wording, config.max_length)
        size = replace(size, query=sum(map(len, rows)) / len(rows))
    if config.method.source != "encoded":
        size = replace(size, epic=None)
    if not task.demonstrations:
        return size
    text = _length(tokenizer, query_prompt(config.template, task, "text"))
    if size.epic is not None:
        shown = _blank_vectors(tokenizer, config, task)
        epic = _length(tokenizer, query_prompt(config.template, task, "epic", shown))
        size = replace(size, epic=epic)
    return replace(size, text=text)


def _length(tokenizer: "TextTokenizer", prompt: Prompt) -> int:
    pieces = tokenizer.prompt_ids(prompt)
    return sum(len(one.values) if isinstance(one, Vectors) else len(one) for one in pieces)


def _blank_vectors(
    tokenizer: "TextTokenizer", config: "EpicConfig", task: Task
) -> "list[dict[str, Tensor]]":
    """As many vectors as each part of a demonstration becomes; their values do not matter."""
    import torch

    method = config.method
    asked, bare = query_prompt(config.template, task, "none"), passage_prompt(config.template)
    instructed = task.symmetric or config.instruct_demonstration_passages
    wordings = {"instruction": bare, "query": asked, "passage": asked if instructed else bare}
    shown: list[dict[str, Tensor]] = [{} for _ in task.demonstrations]
    for part in method.vectors:
        texts = [getattr(one, part, task.instruction) for one in task.demonstrations]
        rows = tokenizer.text_ids(texts, wordings[part], config.max_length)
        for parts, row in zip(shown, rows, strict=True):
            count = -(-len(row) // method.every) if method.every else 1
            parts[part] = torch.empty(count, 0)
    return shown


def key_value_shape(named: str | None, folder: Path | None) -> KeyValueShape | None:
    """A shape by its name in `SHAPES`, by numbers such as "32x8x128", or of a model's folder.

    Args:
        named: layers x key-value heads x head size, or a name; None: look into the folder.
        folder: with `config.json`.

    Returns:
        None where nothing is named and the folder has no `config.json`.

    Raises:
        InputError: for something that is no shape, or a configuration without one.
    """
    if named is None:
        if folder is None or not (folder / "config.json").is_file():
            return None
        return _configured(folder)
    if named.lower() in SHAPES:
        return SHAPES[named.lower()]
    numbers = named.lower().split("x")
    if len(numbers) != 3 or not all(one.isdecimal() and int(one) for one in numbers):
        raise InputError(
            f"shape is {named!r}; expected layers x key-value heads x head size, such as 32x8x128,"
            f" or one of {', '.join(SHAPES)}"
        )
    return KeyValueShape(*map(int, numbers))


def _configured(folder: Path) -> KeyValueShape:
    from epic_retrieval.checkpoint_foreign import read_json

    config = read_json(folder / "config.json")
    try:
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        grouped = config.get("num_key_value_heads") or heads
        return KeyValueShape(config["num_hidden_layers"], grouped, size)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{folder / 'config.json'} does not say how many layers and heads it has ({error!r});"
            " name the shape, such as 32x8x128"
        ) from error
