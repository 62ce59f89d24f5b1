"""The layout of sentence-transformers (6 or newer) for queries without demonstrations.

For a folder written here and `SentenceTransformer(folder)`, in the same dtype and on the same kind
of device:

- `encode(texts, prompt_name="query")` and `encode_query(texts)` are
  `EpicEncoder.encode_queries(texts, task, "none")`;
- `encode_document(texts)` is `EpicEncoder.encode_passages(texts, task)`.

Cut texts included: the query's limit is `max_seq_length`, that of passages `document_length`, both
with the prompt added, since sentence-transformers counts prompt and text together. Special tokens
inside a text stay text there too (`split_special_tokens`).

Vectors may differ in three cases, and in no other that we know:

1. `encode(texts)` without a name of a prompt cuts at the query's limit, so passages longer than
   ours are cut later.
2. The joined string of prompt and text is tokenised at once there, and by us in two parts that are
   cut at the last white space or punctuation of the prompt. That is the same wherever a tokenizer
   splits words before it merges, or never merges over that place: GPT-2, Qwen, Llama 3 and
   SentencePiece vocabularies with the built-in templates do. A template of one's own whose prompt
   ends in a letter can be different for texts that start with one ("say " is safe, "say" is not).
3. A template with special tokens of its own needs them to be special, so those inside texts become
   special too.

The folder is refused when the written tokenizer does not give our ids for some plain texts.
Knows nothing of model cards.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import InputError
from epic_retrieval.prompt import Prompt, build_prompt, passage_prompt
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks import Task
from epic_training.export_tokenizer import check_tokenizer, save_tokenizer, worded

_MODULES = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


def check_exportable(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse what this layout cannot express.

    Raises:
        InputError: saying what it is.
    """
    method, config = checkpoint.config.method, checkpoint.config
    if not method.causal or method.pooling != "eos":
        raise InputError(
            f"{checkpoint.name} has {method.attention} attention and pooling {method.pooling!r};"
            " the sentence-transformers layout is written for causal attention and the end token"
            ' only; use layout="epic"'
        )
    for what, prompt in _prompts(checkpoint, task).items():
        if prompt.suffix:
            raise InputError(
                f"the template {config.template.name!r} puts {prompt.suffix!r} behind a {what}, but"
                " sentence-transformers knows prompts before a text only; use"
                ' layout="epic"'
            )
        length, room = _limit(checkpoint, prompt), checkpoint.backbone.max_positions
        if length > room:
            raise InputError(
                f"the prompt of a {what} and {config.max_length} tokens of text take {length}"
                f" positions, but the model has {room}; use a shorter instruction, or a smaller"
                " max_length in epic_config.json"
            )


def save_sentence_transformers(checkpoint: Checkpoint, task: Task, folder: Path) -> None:
    """Write weights, tokenizer and the settings of sentence-transformers into a folder.

    Args:
        checkpoint: passed `check_exportable`; its model is written as it is.
        task: its instruction is put before queries, and before passages if it is symmetric.
        folder: is there, and empty.

    Raises:
        CheckpointError: the tokenizer of that layout would cut texts otherwise than ours.
    """
    prompts = _prompts(checkpoint, task)
    lengths = {what: _limit(checkpoint, prompt) for what, prompt in prompts.items()}
    checkpoint.backbone.model.save_pretrained(folder)
    save_tokenizer(
        checkpoint.tokenizer, folder, lengths["query"], split=not _has_markup(checkpoint, prompts)
    )
    check_tokenizer(checkpoint.tokenizer, folder, prompts, checkpoint.config.max_length)
    _write(
        folder / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (kind, path) in enumerate(_MODULES)
        ],
    )
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": lengths["query"], "document_length": lengths["document"]},
    )
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "embedding_dimension": checkpoint.backbone.dimension,
            "pooling_mode": "lasttoken",
            "include_prompt": True,
        },
    )
    _write(folder / "2_Normalize" / "config.json", {})
    _write(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {what: worded(prompt) for what, prompt in prompts.items()},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "requirements": {"sentence-transformers": ">=6"},
        },
    )


def _prompts(checkpoint: Checkpoint, task: Task) -> dict[str, Prompt]:
    """What stands before a text, by the names that sentence-transformers has for texts."""
    template = checkpoint.config.template
    query = build_prompt(template, task.instruction)
    return {"query": query, "document": query if task.symmetric else passage_prompt(template)}


def _limit(checkpoint: Checkpoint, prompt: Prompt) -> int:
    """Most tokens of prompt and text together."""
    return len(checkpoint.tokenizer.start_ids(prompt)) + checkpoint.config.max_length


def _has_markup(checkpoint: Checkpoint, prompts: Mapping[str, Prompt]) -> bool:
    """Whether a prompt holds special tokens beside the one that starts it."""
    tokenizer = checkpoint.tokenizer
    special = set(tokenizer.hf.backend_tokenizer.get_added_tokens_decoder())
    skipped = 0 if tokenizer.bos_id is None else 1
    return any(
        special.intersection(tokenizer.start_ids(prompt)[skipped:]) for prompt in prompts.values()
    )


def _write(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
