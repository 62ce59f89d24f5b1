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

The folder is refused when the written tokenizer does not give our ids for a few plain texts.
Knows nothing of model cards.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epic_retrieval.checkpoint import Checkpoint
from epic_retrieval.errors import CheckpointError, InputError
from epic_retrieval.prompt import Prompt, Text, build_prompt, passage_prompt
from epic_retrieval.storage import write_atomically
from epic_retrieval.tasks import Task
from epic_retrieval.tokenization import TokenIds, _without_special_tokens

_MODULES = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
_PROBES = ("hello", "Why is it so?", " two  spaces", "(a) 1.5 – née\nnew line", "漢字 🎉", "x" * 9)


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
    save_tokenizer(checkpoint, folder, lengths["query"], split=not _has_markup(checkpoint, task))
    _check_tokenizer(checkpoint, task, folder)
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
            "prompts": {what: _worded(prompt) for what, prompt in prompts.items()},
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


def _worded(prompt: Prompt) -> str:
    return "".join(piece.text for piece in prompt.prefix if isinstance(piece, Text))


def _limit(checkpoint: Checkpoint, prompt: Prompt) -> int:
    """Most tokens of prompt and text together."""
    return len(checkpoint.tokenizer.start_ids(prompt)) + checkpoint.config.max_length


def _has_markup(checkpoint: Checkpoint, task: Task) -> bool:
    """Whether a prompt holds special tokens beside the one that starts it."""
    tokenizer = checkpoint.tokenizer
    special = set(tokenizer.hf.backend_tokenizer.get_added_tokens_decoder())
    skipped = 0 if tokenizer.bos_id is None else 1
    return any(
        special.intersection(tokenizer.start_ids(prompt)[skipped:])
        for prompt in _prompts(checkpoint, task).values()
    )


def save_tokenizer(checkpoint: Checkpoint, folder: Path, length: int, *, split: bool) -> None:
    """Write a tokenizer that gives our ids for prompt and text as one string, ends included.

    Args:
        checkpoint: whose tokenizer it is.
        folder: is there.
        length: most tokens of a string.
        split: special tokens inside a string are text.
    """
    ours = checkpoint.tokenizer
    backend = ours.hf.backend_tokenizer
    state: dict[str, Any] = json.loads(backend.to_str())
    # Our own tokenizer drops merges that spell a special token.
    state["model"] = json.loads(_without_special_tokens(backend).to_str())["model"]
    state.update(truncation=None, padding=None)
    for token in state["added_tokens"]:
        token["special"] = True  # what is split is decided for all of them together
    ids = {"bos": ours.bos_id, "eos": ours.eos_id}
    ends = {name: (i, backend.id_to_token(i)) for name, i in ids.items() if i is not None}
    state["post_processor"] = _ends_processor(ends)
    write_atomically(folder / "tokenizer.json", json.dumps(state, ensure_ascii=False).encode())
    _write(
        folder / "tokenizer_config.json",
        {
            # Reads tokenizer.json as it is, in every release of transformers.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": content for name, (_, content) in ends.items()},
            # Padding is masked, whatever token stands there.
            "pad_token": ours.hf.pad_token or ends["eos"][1],
            # On the left, positions and sliding windows would count the padding.
            "padding_side": "right",
            "truncation_side": "right",
            "model_max_length": length,
            "split_special_tokens": split,
            "clean_up_tokenization_spaces": False,
        },
    )


def _ends_processor(ends: dict[str, tuple[int, str]]) -> dict[str, Any]:
    """A post-processor that adds the ends after truncation.

    transformers 5 takes no notice of `add_eos_token` in a tokenizer's settings; the end token,
    whose state is the vector, would be missing without a word.
    """

    def special(name: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": 0}}] if name in ends else []

    def text(name: str) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": 0}}]

    single = [*special("bos"), *text("A"), *special("eos")]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *text("B"), *special("eos")],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [content]}
            for name, (token, content) in ends.items()
        },
    }


def _check_tokenizer(checkpoint: Checkpoint, task: Task, folder: Path) -> None:
    """Read the tokenizer back as any library does, and compare ids."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for what, prompt in _prompts(checkpoint, task).items():
        limit = _limit(checkpoint, prompt)
        for text in _probes(checkpoint):
            [row] = checkpoint.tokenizer.text_ids([text], prompt, checkpoint.config.max_length)
            ours: TokenIds = [*checkpoint.tokenizer.start_ids(prompt), *row]
            found = theirs(_worded(prompt) + text, truncation=True, max_length=limit)["input_ids"]
            if found != ours:
                raise CheckpointError(
                    f"the tokenizer cuts the {what} {text[:20]!r} otherwise when it stands behind"
                    f" its prompt ({found[-8:]}, expected {ours[-8:]}), so sentence-transformers"
                    ' would give other vectors; use layout="epic"'
                )


def _probes(checkpoint: Checkpoint) -> Iterator[str]:
    yield from _PROBES
    # Longer than any limit: cut, and the end token kept.
    yield "word " * checkpoint.config.max_length


def _write(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
